"""Published records as a start: what is current and stands alone is taken, the rest is made."""

import json

import pytest
from conftest import ROOT

from prunegpt_utils.__main__ import main
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import adoption, execution, expansion, paths, staleness

STUDY = "pydocs"


@pytest.fixture
def current(monkeypatch, tmp_path):
    """The published records pass for current, but for runs whose names are put into the list."""
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    changed = []
    monkeypatch.setattr(
        staleness, "changes",
        lambda record, spec: iter(["code of masks changed"] * (record["run"] in changed)),
    )  # fmt: skip
    return changed


def taken(tmp_path, part="records"):
    return {path.stem for path in (tmp_path / STUDY / part).glob("*.json")}


def test_records_that_are_current_are_taken_as_made(current, tmp_path, capsys):
    assert adoption.adopt(STUDY) == {}
    assert taken(tmp_path) == set(expansion.plan(STUDY))
    for run in taken(tmp_path):
        name = f"{run}.json"
        ours = (tmp_path / STUDY / "records" / name).read_bytes()
        assert ours == (ROOT / "results" / STUDY / name).read_bytes()
    main(["adopt", STUDY])
    total = len(expansion.plan(STUDY))
    assert capsys.readouterr().out == f"{STUDY}: {total} of {total} runs done\n"


def test_what_changed_is_made_and_all_that_hangs_together_with_it(current, tmp_path):
    current.append("gradual-s90-seed0")
    missing = adoption.adopt(STUDY)
    assert missing["gradual-s90-seed0"] == "code of masks changed"
    assert missing["dense-seed0"] == "gradual-s90-seed0 needs its model"
    assert missing["gradual-distilled-s90-seed0"].endswith(" is made again")
    assert taken(tmp_path) == set(expansion.plan(STUDY)) - missing.keys() == {"zero-shot-seed0"}


def test_what_a_study_would_make_again_at_once_is_not_taken(current, tmp_path, monkeypatch):
    """A published run that began before one that it stands on had ended, as after a repair."""
    again = lambda record, other: (record["run"], other["run"]) == ("dense-seed0", "control-seed0")  # noqa: E731
    monkeypatch.setattr(staleness, "_began_after", again)
    missing = adoption.adopt(STUDY)
    assert missing["control-seed0"] == "dense-seed0 was made again"
    assert missing["dense-seed0"] == "control-seed0 needs its model"
    assert taken(tmp_path) == {"zero-shot-seed0"} and staleness.outdated(STUDY) == {}


def test_what_was_taken_without_its_model_is_made_once_its_model_is_needed(current, tmp_path):
    assert adoption.adopt(STUDY) == {} and "dense-seed0" in taken(tmp_path)
    p = {"study": STUDY, "model": "pydocs-base", "init_from": "dense", "recipe": "mine", "seed": 0}
    with pytest.raises(ParameterError, match="dense-seed0, of which only the record is here"):
        execution.model_of("init_from", p)
    current.append("gradual-s90-seed0")
    assert adoption.adopt(STUDY)["dense-seed0"] == "gradual-s90-seed0 needs its model"
    assert taken(tmp_path) == {"zero-shot-seed0"}


def test_the_documentation_of_another_python_is_another_text(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    monkeypatch.setattr(staleness, "code_changes", lambda then, now: "")
    monkeypatch.setattr(staleness.platform, "python_version", lambda: "3.99.0")
    missing = adoption.adopt(STUDY)
    assert set(missing) == set(expansion.plan(STUDY)) and taken(tmp_path) == set()
    assert "its text is the documentation of Python 3.1" in missing["zero-shot-seed0"]


def test_what_is_there_stays(current, tmp_path):
    mine = tmp_path / STUDY / "records" / "zero-shot-seed0.json"
    mine.parent.mkdir(parents=True)
    mine.write_text(json.dumps({"mine": True}), "utf-8")
    current.append("zero-shot-seed0")
    assert adoption.adopt(STUDY) == {}
    assert json.loads(mine.read_text("utf-8")) == {"mine": True}


def test_what_stands_on_a_run_of_this_machine_is_not_taken(current, tmp_path):
    mine = tmp_path / STUDY / "records" / "dense-seed0.json"
    mine.parent.mkdir(parents=True)
    mine.write_text(json.dumps({"mine": True}), "utf-8")
    missing = adoption.adopt(STUDY)
    assert missing["control-seed0"] == "dense-seed0 was made here"
    assert taken(tmp_path) == {"dense-seed0", "zero-shot-seed0"}


def test_files_are_as_old_as_what_stands_on_them_needs(current, tmp_path):
    """Snakemake makes a run again whose record is older than one that it stands on."""
    adoption.adopt("fair")
    plan, folder = expansion.plan("fair"), tmp_path / "fair" / "records"
    age = {run: (folder / f"{run}.json").stat().st_mtime_ns for run in plan}
    links = [(run, need) for run, spec in plan.items() for need in spec.depends_on]
    assert len(links) > 50 and all(age[run] >= age[need] for run, need in links)


def test_scores_on_tasks_come_along(current, tmp_path, monkeypatch):
    run = "zero-shot-seed0"
    plan = {run: expansion.plan(STUDY)[run]}
    monkeypatch.setattr(paths, "ROOT", tmp_path / "project")
    published = tmp_path / "project" / "results" / STUDY
    (published / "tasks").mkdir(parents=True)
    source = (ROOT / "results" / STUDY / f"{run}.json").read_text("utf-8")
    (published / f"{run}.json").write_text(source, "utf-8")
    (published / "tasks" / f"{run}.json").write_text("{}", "utf-8")
    monkeypatch.setattr(adoption.expansion, "plan", lambda study: plan)
    assert adoption.adopt(STUDY) == {}
    assert taken(tmp_path) == taken(tmp_path, "tasks") == {run}


def test_a_study_without_published_records_is_one_line(current):
    with pytest.raises(ParameterError, match="'smoke' has no published records to go on from"):
        adoption.adopt("smoke")
