import tomllib

import pytest
import yaml
from conftest import ROOT, measured

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import execution, expansion, records, study_files

STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (ROOT / "studies" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_can_be_planned(study):
    plan = expansion.plan(study)
    for name, run in plan.items():
        assert set(run.depends_on) <= set(plan) and name not in run.depends_on
        assert expansion.run_name(run.parameters) == name and run.parameters["study"] == study


@pytest.mark.parametrize("study", STUDIES)
def test_parameters_survive_the_way_to_papermill(study):
    for run in expansion.plan(study).values():
        line = run.as_yaml()
        assert "\n" not in line and yaml.safe_load(line) == run.parameters


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_key_is_a_declared_parameter(recipe):
    books = {
        book
        for study in STUDIES
        for book, group in study_files.load(study)["notebooks"].items()
        if recipe in group
    }
    assert books, "no study uses this recipe"
    keys = study_files.recipe_parameters(recipe)
    assert keys["recipe"] == recipe
    for book in books:
        assert set(keys) <= set(study_files.declared_parameters(book))


def test_quick_study_has_all_it_promises():
    names = set(expansion.plan("pydocs"))
    wanted = {"zero-shot", "dense", "control", "dense-distilled", "one-shot-s90"}
    wanted |= {
        f"{recipe}-s{s}" for recipe in ("gradual", "gradual-distilled") for s in (50, 80, 90)
    }
    assert names == {f"{name}-seed0" for name in wanted}


def test_full_study_gives_every_arm_the_same_steps():
    full, quick = expansion.plan("pydocs-full"), expansion.plan("pydocs")
    arms = [
        run
        for run in full.values()
        if run.parameters["steps"] and run.parameters["recipe"] != "dense"
    ]
    (steps,) = {run.parameters["steps"] for run in arms}
    assert steps >= 5 * quick["control-seed0"].parameters["steps"]
    assert {run.parameters["seed"] for run in arms} == {0, 1, 2}


def test_a_distilled_run_and_its_baseline_differ_in_the_teacher_alone():
    for study in ("pydocs", "pydocs-full"):
        plan = expansion.plan(study)
        for name, run in plan.items():
            if run.parameters["recipe"] == "gradual-distilled":
                alone = plan[name.replace("-distilled", "")].parameters
                extra = {"teacher", "baseline", "alpha", "temperature", "recipe", "one_shot_run"}
                differing = {
                    k for k in {*alone, *run.parameters} if alone.get(k) != run.parameters.get(k)
                }
                assert differing == extra


def test_a_run_depends_on_runs_of_its_own_seed_and_sparsity():
    run = expansion.plan("pydocs-full")["gradual-distilled-s70-seed2"]
    assert run.depends_on == ("dense-seed2", "control-seed2", "gradual-s70-seed2")


def test_axes_and_variants_become_runs_with_names_of_their_own(monkeypatch):
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": {"steps": 5, "seed": [0, 1]}},
        "02_pruning": {"gradual": [
            {"sparsity": [0.5, 0.9], "one_shot_run": ""},
            {"scope": ["2:4"], "sparsity": 0.5, "one_shot_run": ""},
            {"lr": [0.001, 0.004], "seed": [0, 1], "one_shot_run": ""},
        ]},
    }}  # fmt: skip
    monkeypatch.setattr(study_files, "load", lambda study: content)
    plan = expansion.plan("mine")
    assert set(plan) == {
        "dense-seed0", "dense-seed1", "gradual-s50-seed0", "gradual-s90-seed0", "gradual-2of4-s50-seed0",
        "gradual-lr0.001-s90-seed0", "gradual-lr0.001-s90-seed1",
        "gradual-lr0.004-s90-seed0", "gradual-lr0.004-s90-seed1",
    }  # fmt: skip
    assert plan["gradual-2of4-s50-seed0"].parameters["scope"] == "2:4"
    assert plan["gradual-lr0.004-s90-seed0"].depends_on == ("dense-seed0",)
    content["notebooks"]["02_pruning"]["gradual"].append(
        {"sparsity": 0.5, "lr": 0.01, "one_shot_run": ""}
    )
    with pytest.raises(ParameterError, match="run: 'gradual-s50-seed0' is planned twice"):
        expansion.plan("mine")


def test_a_reference_may_name_one_of_several_runs(monkeypatch):
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": {"seed": [0, 1]}, "control": [
            {"steps": [5], "seed": [0, 1]}, {"steps": [10], "seed": [0, 1]},
        ]},
        "03_distillation": {"gradual-distilled": [
            {"baseline": "control", "steps": [20]},
            {"baseline": "control", "steps": [20], "teacher": ["control-steps10"], "seed": [0, 1]},
        ]},
    }}  # fmt: skip
    monkeypatch.setattr(study_files, "load", lambda study: content)
    plan = expansion.plan("mine")
    assert plan["gradual-distilled-steps20-s90-seed0"].depends_on[1] == "control-steps5-seed0"
    run = plan["gradual-distilled-control-steps10-steps20-s90-seed1"]
    assert run.depends_on == ("dense-seed1", "control-steps10-seed1", "control-steps5-seed1")
    assert execution.require("teacher", run.parameters | {"teacher": "control-steps7"}) is None


def test_what_is_named_is_the_run_of_the_same_model_but_for_a_teacher(monkeypatch):
    of = [{"model": ["gpt2-medium"]}, {"model": ["gpt2"]}]
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": of},
        "02_pruning": {"gradual": [{"one_shot_run": ""} | each for each in of]},
        "03_distillation": {"gradual-distilled": {
            "model": ["gpt2", "gpt2-medium"], "teacher": "dense", "baseline": "gradual",
        }},
    }}  # fmt: skip
    monkeypatch.setattr(study_files, "load", lambda study: content)
    plan = expansion.plan("mine")
    for model in ("gpt2", "gpt2-medium"):
        found = plan[f"gradual-distilled-{model}-s90-seed0"].depends_on
        needed = {f"dense-{model}-seed0", f"gradual-{model}-s90-seed0", "dense-gpt2-medium-seed0"}
        assert set(found) == needed


def compared(monkeypatch, **control):
    """The plan of a study of a control, with what it says of it, and a run that is pruned."""
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": {"seed": [0, 1]}, "control": [{"seed": 0}, {"seed": 1} | control]},
        "02_pruning": {"gradual": {"one_shot_run": "", "seed": [0, 1]}},
    }}  # fmt: skip
    monkeypatch.setattr(study_files, "load", lambda study: content)
    return expansion.plan("mine"), content


def test_a_reference_may_name_the_run_of_another_seed(monkeypatch):
    plan, content = compared(monkeypatch, reference="control-seed0")
    assert plan["control-seed1"].depends_on == ("dense-seed1", "control-seed0")
    assert plan["control-seed0"].parameters["reference"] == ""
    assert plan["gradual-s90-seed1"].depends_on == ("dense-seed1", "control-seed1")
    # what another run makes is the run as it is planned
    asked = expansion.resolver(content)("reference", plan["gradual-s90-seed1"].parameters)
    assert asked.parameters == plan["control-seed1"].parameters


def test_the_full_study_knows_how_far_two_seeds_are_apart():
    plan = expansion.plan("pydocs-full")
    found = [plan[f"control-seed{seed}"].parameters["reference"] for seed in range(3)]
    assert found == ["", "control-seed0", "control-seed0"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("control", "control-seed1: reference: 'control' is this run; it must name another"),
        ("control-seed1", "control-seed1: reference: 'control-seed1' is this run"),
        ("contrl", "control-seed1: reference: 'contrl' names no run that this study makes"),
        ("gpt2", "control-seed1: reference: 'gpt2' names no run that this study makes"),
        ("control-seed7", "control-seed1 needs control-seed7, which the study does not make"),
        ("gradual", "each of these runs needs the one before it"),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_is_one_line(monkeypatch, reference, message):
    with pytest.raises(ParameterError, match=message) as error:
        compared(monkeypatch, reference=reference)
    assert "\n" not in str(error.value)


def test_a_study_need_not_make_what_its_recipes_are_compared_with(monkeypatch):
    content = {"study": "mine", "notebooks": {"02_pruning": {"gradual": {"init_from": ""}}}}
    monkeypatch.setattr(study_files, "load", lambda study: content)
    named = study_files.recipe_parameters("gradual")
    assert (named["reference"], named["one_shot_run"]) == ("control", "one-shot")
    made = expansion.plan("mine")["gradual-s90-seed0"].parameters
    assert made["reference"] == made["one_shot_run"] == ""  # the curve is measured by the run


@pytest.mark.parametrize(
    ("notebook", "recipe", "named"),
    [
        ("02_pruning", "gradual", {"one_shot_run": "one-shoot"}),
        ("03_distillation", "gradual-distilled", {"baseline": "gradul"}),
        ("03_distillation", "gradual-distilled", {}),  # the recipe's own, which nobody makes
    ],
)
def test_a_run_whose_record_is_needed_must_be_made(monkeypatch, notebook, recipe, named):
    """It would be missed when the training is done."""
    entry = {"init_from": "", "teacher": "dense", **named}
    listed = {"01_baselines": {"dense": None}, notebook: {recipe: entry}}
    monkeypatch.setattr(study_files, "load", lambda _: {"study": "mine", "notebooks": listed})
    ref, name = next(iter(named.items()), ("baseline", "gradual"))
    message = f"{recipe}-s90-seed0: {ref}: '{name}' names no run that this study makes"
    with pytest.raises(ParameterError, match=message) as error:
        expansion.plan("mine")
    assert "\n" not in str(error.value)


def test_no_run_waits_for_itself():
    p = {"study": "smoke", "recipe": "control", "seed": 0, "reference": "control-seed0"}
    with pytest.raises(ParameterError, match="reference: 'control-seed0' is this run"):
        execution.require("reference", p)


def test_optional_leaves_out_one_variant_only(monkeypatch):
    distilled = {"baseline": "control"}
    optional = {"teacher": ["no/such-model"], "optional": True}
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": None, "control": None},
        "03_distillation": {"gradual-distilled": [
            distilled, distilled | {"teacher": ["dense"]}, distilled | optional,
        ]},
    }}  # fmt: skip
    monkeypatch.setattr(study_files, "load", lambda study: content)
    monkeypatch.setattr(study_files, "exists", lambda study: True)
    assert set(expansion.plan("mine")) == {
        "dense-seed0", "control-seed0", "gradual-distilled-s90-seed0",
        "gradual-distilled-dense-s90-seed0",
    }  # fmt: skip
    left_out = {"gradual-distilled-such-model": "no/such-model"}
    assert expansion.missing_models("mine") == left_out
    monkeypatch.setattr(expansion.hub, "is_available", lambda name: True)
    assert "gradual-distilled-such-model-s90-seed0" in expansion.plan("mine")
    assert expansion.missing_models("mine") == {}


def test_unknown_study_names_those_there_are():
    with pytest.raises(
        ParameterError, match="study: 'pydoc' must be one of .*pydocs, pydocs-full, smoke"
    ):
        expansion.plan("pydoc")


def test_environment_yml_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert conda[-1]["pip"] == [*wanted, "--editable ."]
    assert f"python{project['requires-python']}" in conda


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        assert {item.split(">=")[0] for item in group} <= pinned


def test_a_text_that_changed_under_its_name_is_not_mixed_with_the_old_one():
    p = {"study": "by-hand", "seed": 0, "sparsity": 0.0, "data": "mine.txt"}
    for recipe in ("dense", "control"):
        run = records.open_run("01_baselines", p | {"recipe": recipe})
        records.write(run, **measured())
    run = records.open_run("01_baselines", p | {"recipe": "zero-shot"})
    other = {"data": measured()["data"] | {"sha256": "cd" * 32}}
    with pytest.raises(ParameterError, match="is not the text that control-seed0 read"):
        records.write(run, **(measured() | other))
    assert not run.record.exists()


def test_a_planned_run_reads_the_text_of_those_that_it_stands_on():
    """The others may still have records of the old text when all of a study is made again."""
    p, other = {"study": "smoke", "seed": 0, "sparsity": 0.0, "data": "pydocs"}, measured()
    other["data"] |= {"sha256": "cd" * 32}
    for recipe in ("dense", "control"):
        run = records.open_run("01_baselines", p | {"recipe": recipe})
        records.write(run, **measured())
    assert run.planned.depends_on == ("dense-seed0",)
    with pytest.raises(ParameterError, match="is not the text that dense-seed0 read"):
        records.write(run, **other)
    for recipe in ("dense", "control"):
        run = records.open_run("01_baselines", p | {"recipe": recipe})
        assert records.write(run, **other)["data"] == other["data"]


def test_a_run_made_with_another_text_is_not_built_upon():
    """Changing `data` but not the study name must not mix two texts."""
    p = {"study": "smoke", "recipe": "gradual", "seed": 0, "sparsity": 0.9, "init_from": "dense"}
    p |= {"model": "pydocs-base", "data": "mine.txt", "block_size": 64}
    theirs = p | {"recipe": "dense", "sparsity": 0.0, "data": "pydocs"}
    records.write(records.open_run("01_baselines", theirs), **measured())
    assert execution.require("init_from", p | {"data": "pydocs"})["run"] == "dense-seed0"
    with pytest.raises(
        ParameterError, match="data: 'mine.txt' differs from 'pydocs' of dense-seed0"
    ):
        execution.require("init_from", p)


def test_init_from_and_teacher_may_name_a_model_instead_of_a_run():
    p = {
        "study": "smoke",
        "recipe": "x",
        "seed": 0,
        "model": "pydocs-base",
        "init_from": "",
        "teacher": "gpt2",
    }
    assert execution.model_of("init_from", p) == "pydocs-base"
    assert execution.model_of("teacher", p) == "gpt2"


def test_a_studys_steps_are_for_recipes_that_train(monkeypatch):
    books = {"01_baselines": {"zero-shot": None, "dense": None}, "02_pruning": {"one-shot": None}}
    content = {"study": "mine", "parameters": {"steps": 7}, "notebooks": books}
    monkeypatch.setattr(study_files, "load", lambda study: content)
    runs = [run.parameters for run in expansion.plan("mine").values()]
    found = {run["recipe"]: run["steps"] for run in runs}
    assert found == {"zero-shot": 0, "dense": 7, "one-shot": 0}
