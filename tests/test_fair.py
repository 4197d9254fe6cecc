"""Controls of a fair comparison: smaller dense models, and models that were sparse from scratch."""

import json

import pytest
import torch
import yaml
from conftest import ROOT, measured, papermill, small_text, tiny_gpt2
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from prunegpt_utils import corpora, modeling
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.modeling import prunable_weights
from prunegpt_utils.report.frames import stored_bytes
from prunegpt_utils.runs import costs, execution, expansion, records
from prunegpt_utils.schedules import PruningSchedule
from prunegpt_utils.training import make_optimizer

PRETRAINING = {
    "packages": "seaborn papermill",
    "steps": 3,
    "batch": 2,
    "block_size": 64,
    "layers": 2,
}


def lay_out(runs):
    """A study with one tiny run of each kind, in the folder to which it writes."""
    folder = runs / "kinds"
    folder.mkdir(parents=True)
    tokenizer = modeling.load_tokenizer("pydocs-base")
    whole = tiny_gpt2(vocabulary=2048, block=64)
    modeling.save_model(whole, tokenizer, folder / "whole")
    common = {"steps": 3, "batch": 2, "block_size": 64, "data": str(small_text(folder / "text"))}
    mine, shared = {"model": str(folder / "whole")}, {"init_from": "", "one_shot_run": ""}
    pretraining = PRETRAINING | {"width": 16, "heads": 2}
    content = {
        "study": "kinds",
        "parameters": {"batch": 2, "block_size": 64, "data": common["data"]},
        "notebooks": {
            "00_pretraining": {
                "pretrained": {**pretraining, "recipe": "narrow-20", "width": 12, "heads": 3},
                "scratch-random": {**pretraining, "sparsity": 0.5},
                "scratch-mask": {**pretraining, "sparsity": 0.5},
            },
            "01_baselines": {
                "dense": [{**mine, "steps": 3, "seed": 1}, {"model": ["narrow-20"], "steps": 3, "seed": 1}],
            },
            "02_pruning": {"gradual": {**mine, **shared, "sparsity": 0.5, "steps": 3}},
            "14_small_dense": {
                "small-distilled": {
                    "model": "narrow-20", "init_from": "dense-narrow-20", "teacher": "dense",
                    "block_sparsity": 0.5, "steps": 3, "seed": 1,
                },
            },
        },
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder


def run_of(name, folder):
    spec = expansion.plan(folder.name)[name]
    done = papermill(spec.notebook, folder.parent, spec.parameters)
    assert done.returncode == 0, done.stderr
    return records.read(folder / "records" / f"{name}.json")


def test_a_narrow_model_of_fewer_blocks_learns_from_a_larger_one(runs_folder):
    folder = lay_out(runs_folder)
    record = run_of("small-distilled-b50-seed1", folder)
    assert {path.stem for path in (folder / "records").glob("*.json")} == {
        "small-distilled-b50-seed1", "dense-narrow-20-seed1", "dense-seed1", "narrow-20-seed0",
    }  # fmt: skip
    small = AutoModelForCausalLM.from_pretrained(folder / "models" / record["run"])
    assert (small.config.n_layer, small.config.n_embd) == (1, 12)
    # 12 w^2 weights a block: one of width 12, against two of width 16
    assert record["removed_share"] == pytest.approx(1 - 12**2 / (2 * 16**2))
    assert set(record["one_shot"]) == {"start", "cut", "without block 0", "without block 1"}
    assert record["training"]["flops"]["teacher"] > 0
    found = {path.stem: records.read(path) for path in (folder / "records").glob("*.json")}
    resolve = expansion.resolver(yaml.safe_load((folder / "study.yaml").read_text("utf-8")))
    assert set(costs.flops_along_chain(record["run"], found, resolve)) == set(found)


def test_zeros_from_scratch_are_those_asked_for(runs_folder):
    folder = lay_out(runs_folder)
    taken = run_of("scratch-mask-s50-seed0", folder)
    weights = [
        prunable_weights(AutoModelForCausalLM.from_pretrained(folder / "models" / name))
        for name in ("gradual-s50-seed0", "scratch-mask-s50-seed0")
    ]
    for name, theirs in weights[0].items():
        assert torch.equal(weights[1][name] == 0, theirs == 0)
        assert not torch.equal(weights[1][name], theirs)
    drawn = run_of("scratch-random-s50-seed0", folder)
    for record in (taken, drawn):
        assert record["sparsity"]["prunable"] == 0.5 == record["sparsity"]["requested"]
    assert len(list((folder / "cache").rglob("package-docs-*.json"))) == 1


def test_blocks_of_a_llama_go_too(tmp_path):
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    ))  # fmt: skip
    modeling.save_model(llama, modeling.load_tokenizer("pydocs-base"), tmp_path / "llama")
    given = {
        "study": "odd",
        "model": str(tmp_path / "llama"),
        "data": str(small_text(tmp_path / "t")),
    }
    given |= {"recipe": "shallow", "init_from": "", "teacher": "", "alpha": 0.0, "steps": 2}
    done = papermill("14_small_dense", tmp_path, given | {"batch": 2, "block_size": 64})
    assert done.returncode == 0, done.stderr
    record = records.read(tmp_path / "odd" / "records" / "shallow-b33-seed0.json")
    assert record["removed_share"] == pytest.approx(1 / 3)
    assert record["training"]["flops"]["teacher"] == 0


def chained(runs):
    """{run: record} by hand: (operations of the student, of the teacher, parameters) each."""
    return {
        run: {"run": run, "parameters": p, "training": {"flops": {"student": own, "teacher": said}}}
        for run, (own, said, p) in runs.items()
    }


BY_HAND = chained({
    "base": (1000, 0, {"model": ""}),
    "dense": (20, 0, {"model": "base", "init_from": ""}),
    "control": (30, 0, {"model": "base", "init_from": "dense"}),
    "gradual": (40, 0, {"model": "base", "init_from": "dense"}),
    "taught": (40, 7, {"model": "base", "init_from": "dense", "teacher": "control", "alpha": 0.67, "baseline": "gradual"}),
    "alone": (40, 0, {"model": "base", "init_from": "dense", "teacher": "control", "alpha": 0.0}),
    "scratch": (900, 0, {"mask_from": "gradual"}),
    "elsewhere": (5, 0, {"model": "gpt2", "init_from": "", "teacher": "gpt2-xl", "alpha": 0.5}),
})  # fmt: skip


def by_hand(ref, p):
    return expansion.RunSpec(p[ref], "", {}) if p[ref] in BY_HAND else None


@pytest.mark.parametrize(
    ("run", "total"),
    [
        ("base", 1000), ("control", 1050), ("alone", 1060), ("elsewhere", 5),
        ("taught", 47 + 30 + 20 + 1000),  # dense, where both begin, once; not the baseline
        ("scratch", 900 + 40 + 20 + 1000),
    ],
)  # fmt: skip
def test_a_run_costs_what_all_that_it_stands_on_did(run, total):
    found = costs.flops_along_chain(run, BY_HAND, by_hand)
    assert sum(sum(flops.values()) for flops in found.values()) == total
    assert found[run] == BY_HAND[run]["training"]["flops"]


def test_a_cost_that_is_not_known_is_not_guessed():
    with pytest.raises(ParameterError, match="run: 'control' has no record here"):
        costs.flops_along_chain(
            "taught", {k: v for k, v in BY_HAND.items() if k != "control"}, by_hand
        )
    silent = BY_HAND | {"base": {"parameters": {}, "training": {}}}
    with pytest.raises(ParameterError, match="run: 'base' has a record that does not say"):
        costs.flops_along_chain("dense", silent, by_hand)


def recorded(folder, name, **p):
    """The record of a run of a study in `folder`, as its notebook would have written it."""
    p = {"study": folder.name, "recipe": name, "seed": 0, "block_size": 64} | p
    records.write(records.open_run("01_baselines", p), **measured())


def test_a_teacher_alone_may_be_of_another_model(runs_folder, tmp_path):
    small = tmp_path / "small"
    modeling.save_model(tiny_gpt2(vocabulary=2048), modeling.load_tokenizer("pydocs-base"), small)
    recorded(runs_folder / "smoke", "control", model="pydocs-base")
    p = {"study": "smoke", "recipe": "x", "seed": 0, "model": str(small), "teacher": "control"}
    assert execution.require("teacher", p)["run"] == "control-seed0"
    with pytest.raises(
        ParameterError, match="model: .* differs from 'pydocs-base' of control-seed0"
    ):
        execution.require("init_from", p | {"init_from": "control"})


def test_a_teacher_with_other_tokens_is_refused(runs_folder, tmp_path, monkeypatch):
    words = {"a": 0, "b": 1}
    loaded = {"pydocs-base": words, "small": words | {"c": 2}}
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: loaded[self.name]})

    def load(name, parameter):
        found = tokenizer()
        found.name = str(name)
        return found

    monkeypatch.setattr(modeling, "load_tokenizer", load)
    recorded(runs_folder / "smoke", "control", model="pydocs-base")
    p = {"study": "smoke", "recipe": "x", "seed": 0, "model": "small", "teacher": "control"}
    with pytest.raises(ParameterError, match="teacher: 'control' has other tokens .*, such as 'c'"):
        execution.require("teacher", p)


def test_a_pretrained_model_is_one_for_all_seeds(runs_folder):
    folder = runs_folder / "seeds"
    folder.mkdir(parents=True)
    pretrained = {"pretrained": {"recipe": "narrow-20", "width": 12}}
    content = {
        "study": "seeds",
        "notebooks": {
            "00_pretraining": pretrained,
            "01_baselines": {"dense": {"model": "narrow-20", "seed": [0, 1]}},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    plan = expansion.plan("seeds")
    assert plan["dense-seed1"].depends_on == plan["dense-seed0"].depends_on == ("narrow-20-seed0",)


def test_documentation_is_collected_once_for_the_same_packages(tmp_path, monkeypatch):
    first = corpora.cached_package_docs(["seaborn"], tmp_path)
    assert first == corpora.package_docs(["seaborn"])
    monkeypatch.setattr(corpora, "package_docs", lambda packages: {"other": list(packages)})
    assert corpora.cached_package_docs(["seaborn"], tmp_path) == first
    monkeypatch.setattr(corpora.importlib.metadata, "version", lambda owner: "0.0")
    assert corpora.cached_package_docs(["seaborn"], tmp_path) == {"other": ["seaborn"]}


def decayed(**schedule):
    """Names of the block matrices that the optimizer decays."""
    model, config = tiny_gpt2(), TrainConfig(10, 0.1, pruning=PruningSchedule(0.5, **schedule))
    group = {id(weight) for weight in make_optimizer(model, config).param_groups[0]["params"]}
    return {name for name, weight in prunable_weights(model).items() if id(weight) in group}


def test_what_stays_is_decayed_once_nothing_more_is_cut():
    """As in the dense model that a sparse one from scratch is compared with."""
    assert decayed(start=0.5, prune_until=0.0) == set(prunable_weights(tiny_gpt2()))
    assert not decayed(start=0.0) and not decayed(prune_from=0.5, prune_until=0.5)
    assert not decayed(start=0.5, prune_until=0.0, regrow_decay=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vocabulary_from": "nowhere"}, "vocabulary_from: 'nowhere' must name pydocs-base or"),
        ({"mask_from": "pydocs-base", "layers": 2}, "mask_from: 'pydocs-base' must be a GPT-2 of 2 blocks"),
        ({"mask_from": "pydocs-base", "sparsity": 0.9}, "sparsity: 0.9 is not that of pydocs-base, which is 0.0000"),
    ],
)  # fmt: skip
def test_what_cannot_be_pretrained_is_refused_at_once(monkeypatch, given, message):
    cells = json.loads((ROOT / "notebooks" / "00_pretraining.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:3]
    names = {"In": code}
    for source in code[:2]:
        exec(compile(source, "cell", "exec"), names)
    names |= given
    with pytest.raises(ParameterError) as refused:
        exec(compile(code[2], "cell", "exec"), names)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("study", "control"),
    [
        ("fair", "control-steps1200-lr0.0005"),
        ("fair-small", "control"),
        ("fair-bytes", "control"),
        ("fair-scratch", "control"),
    ],
)
def test_every_arm_of_the_study_reads_as_much_text_and_has_the_same_teacher(study, control):
    """1,600 steps from the pretrained model on."""
    plan = expansion.plan(study)
    trained = {n: r for n, r in plan.items() if r.notebook != "00_pretraining"}
    arms = [r for r in trained.values() if r.base_recipe not in ("dense", "one-shot")]
    for run in arms:
        p = run.parameters
        start = (
            [need for need in run.depends_on if need.startswith("dense-")] if p["init_from"] else []
        )
        steps = p["steps"] + sum(plan[name].parameters["steps"] for name in start)
        assert steps == 1600, run.name
        if p.get("alpha"):
            assert f"{control}-seed{p['seed']}" in run.depends_on


def test_the_small_models_have_the_block_weights_that_sparse_ones_keep():
    plan = expansion.plan("fair-small")
    widths = [r.parameters["width"] for r in plan.values() if "width" in r.parameters]
    shares = [(width / 192) ** 2 for width in widths]  # block weights are 12 x width^2 x layers
    assert shares == pytest.approx([0.5, 0.2, 0.1, 0.05], abs=0.007)
    assert all(width % 3 == 0 for width in widths)


def test_the_models_of_fair_bytes_take_no_more_bytes_than_the_sparse_ones_beside_them():
    """And the next wider one of three heads would take more."""

    def stored(width, sparsity=0.0):
        shape = {"n_embd": width, "n_layer": 3, "n_head": 3, "n_positions": 128}
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, **shape))
        count = sum(weight.numel() for weight in prunable_weights(model).values())
        size = {"parameters": model.num_parameters(), "prunable": count}
        return stored_bytes({"model": size, "sparsity": {"prunable": sparsity}}, 2)

    runs = expansion.plan("fair-bytes").values()
    widths = sorted(r.parameters["width"] for r in runs if "width" in r.parameters)
    for width, sparsity in zip(widths, (0.95, 0.9, 0.8), strict=True):
        assert stored(width) <= stored(192, sparsity) < stored(width + 3), (width, sparsity)
