# PruneGPT: `make study` answers the question, `make test` checks the tools. `make help` lists all.
PYTHON ?= python3
STUDY ?= pydocs
PROFILE ?= local
GPUS ?= $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)

VENV := .venv
# ENV=active takes the environment that is active already, conda's or another, and installs nothing
ifeq ($(ENV),active)
BIN := $(patsubst %/,%,$(dir $(shell command -v python)))
STAMP := active
else
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
endif
NOTEBOOKS := 00_start_here 01_baselines 02_pruning 03_distillation 04_size_and_speed \
	05_results 06_criteria 07_methods 08_ablations 09_structured 10_budget 11_real_model 12_forgetting \
	13_one_shot 14_small_dense 15_fair_controls
BENCHMARKS := training_step mask_cost teacher_cost attention_cost global_threshold perplexity \
	criteria_cost tokenising study_of_runs sparse_inference scaling threads compiled kept_copies profiles
TOOLS := $(BIN)/python -m prunegpt_utils
NAME := $(or $(NEW),$(STUDY))
OVERRIDE = $(if $(NEW)$(SET),$(TOOLS) override "$(STUDY)" "$(NEW)" "$(SET)")
SNAKEMAKE = --profile studies/profiles/$(PROFILE) \
	$(if $(filter local,$(PROFILE)),--cores $(JOBS) $(if $(filter-out 0,$(GPUS)),--resources gpu=$(GPUS))) \
	$(if $(SLURM),--default-resources $(SLURM))

export JUPYTER_PLATFORM_DIRS = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help active study resume adopt plan status check-results rerun export tasks report share publish notebooks pretraining verify-gpt2 bench lab test test-system lint clean-store clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo "  Choose a study with STUDY=pydocs (default) or another of studies/; cores with JOBS=2."
	@echo "  ENV=active takes the Python environment that is active, and not .venv, which it makes else."
	@echo "  Change it with NEW=mine SET=\"steps=200 sparsity=0.8,0.9\"; docs/scale.md tells more."

study: $(STAMP)  ## run a study: from the pretrained model to table, figure and report
	@$(OVERRIDE)
	@$(TOOLS) study "$(NAME)" "$(GPUS)" $(SNAKEMAKE)

resume: $(STAMP)  ## go on after a crash or an interrupt
	@$(TOOLS) resume "$(NAME)" "$(GPUS)" $(SNAKEMAKE)

adopt: $(STAMP)  ## go on from a study's published records: only what is missing is run
	@$(TOOLS) adopt "$(NAME)"

plan: $(STAMP)  ## what a study still has to do, how long it takes, a picture of it; runs nothing
	@$(OVERRIDE)
	@$(TOOLS) plan "$(NAME)"

status: $(STAMP)  ## what is done, what runs and how far it is, what failed
	@$(TOOLS) status "$(NAME)"

check-results: $(STAMP)  ## read all records of a study again and name what is wrong with them
	@$(TOOLS) check-results "$(NAME)"

rerun: $(STAMP)  ## make one recorded run again and compare: RUN=pydocs/dense-seed0
	@$(TOOLS) rerun "$(RUN)"

export: $(STAMP)  ## a run's model with a card, for plain transformers: RUN=pydocs/dense-seed0 [OUT=folder]
	@$(BIN)/python -m prunegpt_utils export "$(RUN)" $(if $(OUT),"$(OUT)")

tasks: $(STAMP)  ## what a model still can: RUN=study/run, folder or model; else all runs [TASKS="blimp capitals" SAMPLES=30]
	@$(TOOLS) tasks "$(RUN)" "$(NAME)" "$(TASKS)" "$(SAMPLES)"

report: $(STAMP)  ## write the HTML report of a study anew
	@$(TOOLS) report "$(NAME)"
	@$(TOOLS) finish "$(NAME)"

share: $(STAMP)  ## a study as one HTML file that opens anywhere and asks no network
	@$(TOOLS) share "$(NAME)"

publish: $(STAMP)  ## copy a finished study's records and figures into the repository
	@$(TOOLS) publish "$(NAME)"

# 05, 07, 08, 10, 11, 12 and 15 read the published records here, so that their links lead to files of
# the repository.
notebooks: $(STAMP)  ## execute the notebooks in place, at their default parameters
	@for name in $(NOTEBOOKS); do echo "  $$name"; out=$(VENV)/$$name; runs="$(PRUNEGPT_RUNS)"; \
	case $$name in 05_*|07_*|08_*|10_*|11_*|12_*|15_*) runs="$(CURDIR)/$(VENV)/published";; esac; \
	PRUNEGPT_RUNS="$$runs" $(BIN)/python -m papermill notebooks/$$name.ipynb $$out.ipynb \
	  --kernel python3 --no-progress-bar > $$out.log 2>&1 || { tail -n 3 $$out.log; exit 1; }; \
	$(BIN)/python -m prunegpt_utils strip-metadata $$out.ipynb && mv $$out.ipynb notebooks/; done

pretraining: $(STAMP)  ## make the embedded base model again (about an hour of two cores)
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[pretraining]'
	@$(MAKE) --no-print-directory notebooks NOTEBOOKS=00_pretraining

verify-gpt2: $(STAMP)  ## measure the real GPT-2 against the values others report [MODELS="gpt2-xl"]
	@$(BIN)/python benchmarks/verify_gpt2.py $(MODELS)

bench: $(STAMP)  ## measure the speed beside other tools, on an idle machine; rewrites the table of it
	@for name in $(BENCHMARKS); do echo "$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
	@$(BIN)/python -m benchmarks.table

# A notebook has threads on all cores. Those that wait for work sleep, for beside a busy process they
# would hold the core that the others need: benchmarks/threads.py.
lab notebooks: export OMP_WAIT_POLICY ?= passive

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: $(STAMP)  ## run the test suite
	@$(BIN)/python -m pytest

test-system: $(STAMP)  ## run the long tests: whole studies, kills, browsers, Slurm [TESTS=tests/test_slurm.py WORKERS=2]
	@$(BIN)/python -m pytest -m system --numprocesses $(or $(WORKERS),0) --dist load $(TESTS)

lint: $(STAMP)  ## check the style of code and notebooks, the types, and what may import what
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

clean-store: $(STAMP)  ## remove the outcomes of trainings that all studies share; results stay
	@$(TOOLS) clean-store

clean:  ## remove the environment; runs/ stays, it holds your results
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info

active:
	@mkdir -p $(VENV)
	@$(BIN)/python -c 'import torch, transformers, papermill, snakemake, lm_eval' 2>$(VENV)/active.log || \
	  { echo "error: ENV: 'active' must be an environment with the packages of environment.yml;" \
	    "$(BIN)/python says: $$(tail -n 1 $(VENV)/active.log)"; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: PYTHON: '$(PYTHON)' must be Python 3.11 or newer; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: PYTHON: '$(PYTHON)' must have the venv module (on Debian: the package python3-venv)"; exit 1; }
	@echo "setting up $(VENV), once: a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
