"""What a change of the code does to results: which are made again, and what is said of it."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, measured, tiny_gpt2

from prunegpt_utils import __main__ as commands
from prunegpt_utils import checkpoints, criteria, distributed, provenance
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import publish
from prunegpt_utils.runs import (
    estimate,
    execution,
    expansion,
    paths,
    records,
    scheduler,
    staleness,
    study_files,
    validation,
)  # fmt: skip

CODE = '''"""What it is."""
import torch
from prunegpt_utils import schedules

LIMIT = 3  # why


def act(x):
    """What it does."""
    return {"a": x, "b": -x}
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it is."""', '"""Something else."""'), ('    """What it does."""\n', ""),
        ("# why", "# because"), ('{"a": x, "b": -x}', "{\n        'a': x,\n        'b': -x,\n    }"),
    ],
)  # fmt: skip
def test_prose_and_layout_are_no_change(old, new):
    assert provenance.code_hash(CODE.replace(old, new)) == provenance.code_hash(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("LIMIT = 3", "LIMIT = 4"), ("-x", "+x"), ("LIMIT = 3", "LIMIT = 3.0"), ('"b"', 'b"b"')]
)  # fmt: skip
def test_any_other_change_is_one(old, new):
    assert provenance.code_hash(CODE.replace(old, new)) != provenance.code_hash(CODE)


def test_the_hash_is_the_same_in_every_python():
    """Frozen: a new Python must not throw away the results of a night."""
    assert provenance.code_hash(CODE) == "b23a69f967fcc438"


def test_a_notebook_depends_on_what_it_imports():
    first, structured = (set(study_files.code_of(n)) for n in ("01_baselines", "09_structured"))
    needed = {"notebook", "losses", "evaluation", "training", "pruner", "corpora", "tokenization"}
    assert needed <= first and "structured" not in first and "structured" in structured
    assert first.isdisjoint({*provenance.PLUMBING, "runs", "report"})
    assert study_files.code_of("a_notebook_of_mine") == {}


@pytest.mark.parametrize(
    "act", ["study_files.code_of('01_baselines')", "estimate.estimate('smoke')"]
)
def test_hashing_and_planning_need_no_torch(act):
    """Its import takes longer than all the rest of an answer; a GPU may only be asked through it."""
    if "estimate" in act and distributed.device().type != "cpu":
        pytest.skip("a GPU is asked for its name")
    code = f"import sys; from prunegpt_utils.runs import estimate, study_files; {act}"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert estimate._device_name() == distributed.device_name(), "records of this machine"


def test_a_training_is_another_one_when_its_code_changes(monkeypatch, ids):
    windows, config = ids[:66].view(2, 33), TrainConfig(2, 0.001)

    def identity():
        return checkpoints.training_identity(tiny_gpt2(), windows, ids, config, None)

    before, known = identity(), provenance._module
    assert before == identity() and "losses" in before["code"] and "corpora" not in before["code"]
    changed = {"losses": "0" * 16}
    monkeypatch.setattr(
        provenance, "_module", lambda name: (changed.get(name, known(name)[0]), known(name)[1])
    )
    assert identity() != before


@pytest.fixture
def study(runs_folder):
    """A study of three runs, each standing on the one before, all with records."""
    content = {"study": "mine", "parameters": {"steps": 5}, "notebooks": {
        "01_baselines": {"dense": None},
        "02_pruning": {"gradual": {"one_shot_run": ""}},
        "04_size_and_speed": {"size-and-speed": {"init_from": "gradual"}},
    }}  # fmt: skip
    path = runs_folder / "mine" / "study.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content), "utf-8")
    for run in expansion.plan("mine").values():
        defaults = study_files.default_parameters(run.notebook)
        records.write(records.open_run(run.notebook, defaults | run.parameters), **measured())
    assert staleness.outdated("mine") == {}
    return path


DENSE, PRUNED, SPEED = "dense-seed0", "gradual-s90-seed0", "size-and-speed-s90-seed0"


def edit(run, change):
    path = paths.study_folder("mine") / "records" / f"{run}.json"
    record = records.read(path)
    change(record)
    records.put(path, record)


def test_changed_code_is_named_and_what_stands_on_it_is_made_again(study, monkeypatch):
    edit(PRUNED, lambda r: r["code"].update(losses="0" * 16, masks="1" * 16, notebook="2" * 16))
    found = staleness.outdated("mine")
    assert found == {
        PRUNED: "notebook and code of losses, masks changed", SPEED: f"{PRUNED} is made again"
    }  # fmt: skip
    assert estimate.estimate("mine")["todo"] == found
    monkeypatch.setattr(records, "environment", lambda: {"dirty": False})
    with pytest.raises(ParameterError, match="'mine' is out of date: gradual-s90-seed0: notebook"):
        publish.publish("mine")


def test_snakemake_is_told_and_the_reader_as_well(study, monkeypatch, capsys):
    edit(PRUNED, lambda r: r["code"].update(losses="0" * 16))
    edit(DENSE, lambda r: r["environment"].update(torch="1.0"))
    started = []
    monkeypatch.setattr(scheduler, "_wait", lambda command: started.append(command) or 0)
    commands.main(["study", "mine", "0", "--cores", "1"])
    place = started[0].index("--forcerun")
    assert started[0][place + 1 : place + 3] == [f"records/{run}.json" for run in (PRUNED, SPEED)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"  again: {PRUNED}: code of losses changed", f"  again: {SPEED}: {PRUNED} is made again",
    ]  # fmt: skip
    assert lines[2].startswith("  note: 1 records were made with torch 1.0; here it is ")
    commands.main(["plan", "mine"])
    assert f"  to do  {PRUNED}, again: code of losses changed" in capsys.readouterr().out


def test_changed_parameters_are_named(study):
    content = yaml.safe_load(study.read_text())
    content["notebooks"]["01_baselines"]["dense"] = {"lr": 0.004, "epochs": 2}
    study.write_text(yaml.safe_dump(content))
    assert staleness.outdated("mine")[DENSE] == "parameters changed: lr, epochs"
    edit(DENSE, lambda r: r["parameters"].update(lr=0.004, epochs=2.0))
    assert DENSE not in staleness.outdated("mine")
    content["notebooks"]["01_baselines"]["dense"] = {"lr": 0.004}  # back to the notebook's own
    study.write_text(yaml.safe_dump(content))
    assert staleness.outdated("mine")[DENSE] == "parameters changed: epochs"


def test_what_a_run_stands_on_was_made_again(study):
    edit(DENSE, lambda r: r.update(started="2100-01-01T00:00:00Z"))
    assert staleness.outdated("mine") == {
        PRUNED: f"{DENSE} was made again", SPEED: f"{PRUNED} is made again"
    }  # fmt: skip


def test_records_that_do_not_name_their_code_are_kept(study):
    for run in (DENSE, PRUNED, SPEED):
        edit(run, lambda r: r.pop("code"))
    assert staleness.outdated("mine") == {}


def test_a_record_says_in_which_precision_its_run_trained(study):
    path = paths.study_folder("mine") / "records" / f"{DENSE}.json"
    assert records.read(path)["environment"]["precision"] in ("bf16", "float32")


def test_a_criterion_of_the_readers_own_counts_as_code(study, monkeypatch):
    edit(PRUNED, lambda r: r["environment"].update(own_criteria={"mine.py": "1" * 64}))
    assert staleness.outdated("mine") == {}  # not loaded here
    monkeypatch.setattr(criteria, "OWN", {"mine.py": "2" * 64})
    assert staleness.outdated("mine")[PRUNED] == "your own criteria changed"


def test_a_run_made_by_other_code_is_built_upon_but_named(study, capsys):
    p = expansion.plan("mine")[PRUNED].parameters
    execution.require("init_from", p)
    assert capsys.readouterr().out == ""
    edit(DENSE, lambda r: r["code"].update(losses="0" * 16))
    assert execution.require("init_from", p)["run"] == DENSE
    assert f"{DENSE} is out of date: code of losses changed since" in capsys.readouterr().out


def test_rerun_says_what_is_not_as_it_was(study, monkeypatch, capsys):
    path = paths.study_folder("mine") / "records" / f"{DENSE}.json"
    old, new = records.read(path), records.read(path)
    old["environment"] |= {"torch": "1.0"}
    del old["environment"]["precision"]
    new["code"] |= {"losses": "0" * 16}
    new["environment"]["precision"] = "bf16"
    new["one_shot_curve"] = None  # as a notebook writes that measured none
    monkeypatch.setattr(validation, "rerun", lambda *_: (old, new))
    commands.main(["rerun", f"mine/{DENSE}"])
    lines = capsys.readouterr().out.splitlines()
    assert "  precision: not recorded then, bf16 now" in lines
    assert f"  torch: 1.0 then, {new['environment']['torch']} now" in lines
    assert "  code of losses changed since" in lines


def test_texts_and_tokens_that_other_code_made_are_not_read(monkeypatch):
    run = records.Run("01_baselines", {"study": "mine", "recipe": "dense", "seed": 0})
    before = run.cache
    assert before.parent == paths.study_folder("mine") / "cache" and run.cache == before
    known = provenance._module  # as if `tokenization` alone had been edited
    monkeypatch.setattr(
        provenance, "_module",
        lambda name: ("edited", known(name)[1]) if name == "tokenization" else known(name),
    )  # fmt: skip
    assert run.cache != before
