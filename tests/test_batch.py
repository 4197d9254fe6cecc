"""Studies with other parameters, several at once, one start at a time, and what is shown at the end."""

import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, cheap_study, measured
from hypothesis import given, settings
from hypothesis import strategies as some
from test_bad_studies import OLD_RECIPES
from test_parameters import OLD_NAMES

from prunegpt_utils import __main__ as commands
from prunegpt_utils import files
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import frames, plots, tables
from prunegpt_utils.runs import expansion, overrides, parameters, records, scheduler, yaml_files

quick = settings(max_examples=60, deadline=None)
HOLD = """
import sys, time
from pathlib import Path
from prunegpt_utils.files import acquire
with acquire(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def steps(study):
    return {name: run.parameters["steps"] for name, run in expansion.plan(study).items()}


def test_a_changed_study_has_a_file_and_a_name_of_its_own(runs_folder):
    path = overrides.override("pydocs", "short", "steps=7 sparsity=0.5,0.95 gradual.lr=1e-3")
    assert path == runs_folder / "short" / "study.yaml"
    plan = expansion.plan("short")
    assert plan["dense-seed0"].parameters["study"] == "short"
    assert {run.parameters["sparsity"] for run in plan.values() if run.notebook == "02_pruning"} == {
        0.5, 0.95,
    }  # fmt: skip
    assert plan["gradual-s95-seed0"].parameters["lr"] == 0.001
    assert plan["gradual-distilled-s95-seed0"].parameters["lr"] == 0.002
    # what a recipe has switched off stays off: these are not trained
    off = {"zero-shot-seed0", "one-shot-s50-seed0", "one-shot-s95-seed0"}
    assert {name for name, count in steps("short").items() if count == 0} == off
    assert set(steps("short").values()) == {0, 7}


def test_a_change_behind_a_recipe_switches_on():
    overrides.override("pydocs", "on", "zero-shot.steps=5")
    assert steps("on") == steps("pydocs") | {"zero-shot-seed0": 5}


def test_the_same_changes_once_more_are_no_other_study():
    first = overrides.override("pydocs", "short", "steps=7").read_bytes()
    assert overrides.override("pydocs", "short", "steps=7").read_bytes() == first
    with pytest.raises(ParameterError, match="NEW: 'short' is the name of another study"):
        overrides.override("pydocs", "short", "steps=8")
    assert steps("short")["dense-seed0"] == 7


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("", "steps=3", "NEW: '' must name the new study"),
        ("../x", "steps=3", "study: '../x' must be letters"),
        ("smoke", "steps=3", "NEW: 'smoke' is the name of another study"),
        ("mine", "steps", "SET: 'steps' must be parameter=value"),
        ("mine", "steps=", "SET: 'steps=' must be parameter=value"),
        ("mine", "stepps=3", "stepps: '3' is not a parameter; did you mean 'steps'"),
        ("mine", "steps=-3", "steps: -3 must be a whole number"),
        ("mine", "steps=few", "steps: 'few' must be a whole number"),
        ("mine", "sparsity=0.5,90", "sparsity: 90.0 must lie in"),
        ("mine", "layers=3", "SET: 'layers=3' changes no run of pydocs"),
        ("mine", "narrow.steps=3", "SET: 'narrow.steps=3' must name a recipe: control, dense"),
        ("mine", "dense.alpha=0.5", "SET: 'dense.alpha=0.5' changes no run of pydocs"),
    ],
)
def test_a_wrong_change_writes_nothing(runs_folder, name, changes, message):
    with pytest.raises(ParameterError, match=message) as error:
        overrides.override("pydocs", name, changes)
    assert "\n" not in str(error.value) and not runs_folder.exists()


def test_steps_are_not_set_where_epochs_count(runs_folder):
    with pytest.raises(ParameterError, match="sets steps where epochs are counted; add epochs=0"):
        overrides.override("wikitext-2", "short", "steps=7")
    overrides.override("wikitext-2", "larger", "gradient_accumulation_steps=2")
    overrides.override("wikitext-2", "short", "steps=7 epochs=0")
    planned = expansion.plan("short").values()
    assert {run.parameters.get("epochs", 0) for run in planned} == {0}
    assert {run.parameters["steps"] for run in planned if "steps" in run.parameters} <= {0, 7}


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_a_change_of_an_old_parameter_names_the_new_one(runs_folder, old, new):
    for change in (f"{old}=1", f"dense.{old}=1"):
        with pytest.raises(ParameterError, match=f"^{old}: '1' is called {new} now") as error:
            overrides.override("pydocs", "mine", change)
        assert "\n" not in str(error.value) and not runs_folder.exists()


@pytest.mark.parametrize(("old", "new"), OLD_RECIPES.items())
def test_a_change_behind_an_old_recipe_names_the_new_one(runs_folder, old, new):
    with pytest.raises(ParameterError, match=f"^SET: '{old}.steps=3' .*`{new}: ") as error:
        overrides.override("methods", "mine", f"{old}.steps=3")
    assert "\n" not in str(error.value) and not runs_folder.exists()


def test_an_axis_of_the_whole_study_stays_with_itself(runs_folder):
    """What a run stands on was made of the same model."""
    overrides.override("pydocs", "two", "model=pydocs-base,some/folder-b seed=0,1")
    plan = expansion.plan("two")
    assert len(plan) == 4 * len(expansion.plan("pydocs"))
    for run in plan.values():
        for need in run.depends_on:
            assert plan[need].parameters["model"] == run.parameters["model"]
            assert plan[need].parameters["seed"] == run.parameters["seed"]
    assert "gradual-distilled-folder-b-s90-seed1" in plan


def test_two_studies_are_run_one_after_the_other(monkeypatch):
    done = []
    monkeypatch.setattr(scheduler, "_wait", lambda command: done.append(command[-1]) or 0)
    assert list(scheduler.run(["smoke", "pydocs"], [])) == [("smoke", 0), ("pydocs", 0)]
    assert done == ["study=smoke", "study=pydocs"]


def test_all_studies_are_checked_before_the_first_run(monkeypatch, runs_folder):
    monkeypatch.setattr(scheduler, "_wait", lambda command: 1 / 0)
    with pytest.raises(ParameterError, match="study: 'nosuch' must be one of"):
        list(scheduler.run(["smoke", "nosuch"], []))
    assert not runs_folder.exists()


def test_a_second_start_names_who_runs(runs_folder, monkeypatch):
    monkeypatch.setattr(scheduler, "_wait", lambda command: 0)
    lock = runs_folder / "smoke" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock, "60"], cwd=ROOT, stdout=-1) as other:
        other.stdout.readline()
        for resume in (False, True):
            with pytest.raises(
                ParameterError, match=f"'smoke' is being run by process {other.pid} on"
            ):
                list(scheduler.run(["smoke"], [], resume=resume))
        other.kill()
    assert list(scheduler.run(["smoke"], [])) == [("smoke", 0)]


def test_what_a_killed_start_left_is_taken_over_only_when_asked(runs_folder, monkeypatch):
    done = []
    monkeypatch.setattr(scheduler, "_wait", lambda command: done.append(command[-1]) or 0)
    left = runs_folder / "smoke" / ".snakemake" / "locks" / "0.input.lock"
    left.parent.mkdir(parents=True)
    left.write_text("")
    with pytest.raises(
        ParameterError, match="study: 'smoke' was killed; `make resume STUDY=smoke`"
    ):
        list(scheduler.run(["smoke"], []))
    assert list(scheduler.run(["smoke"], [], resume=True)) == [("smoke", 0)]
    assert done == ["--unlock", "study=smoke"]


def test_no_study_is_run_if_a_later_one_was_killed(runs_folder, monkeypatch):
    monkeypatch.setattr(scheduler, "_wait", lambda command: 1 / 0)
    killed = runs_folder / "pydocs" / ".snakemake" / "locks" / "0.input.lock"
    log = runs_folder / "pydocs" / "logs" / "snakemake.log"
    for path in (killed, log):
        path.parent.mkdir(parents=True)
        path.write_text("its last words")
    with pytest.raises(ParameterError, match="study: 'pydocs' was killed"):
        list(scheduler.run(["smoke", "pydocs"], []))
    assert log.read_text() == "its last words"


def test_a_lock_is_waited_for(tmp_path):
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock, "0.5"], cwd=ROOT, stdout=-1) as other:
        other.stdout.readline()
        begin = time.monotonic()
        with files.acquire(lock, wait=False) as holder:
            assert holder.startswith(f"process {other.pid} on ")
        with files.acquire(lock) as holder:
            assert holder.startswith(f"process {other.pid} on ")
            assert time.monotonic() - begin > 0.2
    with files.acquire(lock) as holder:
        assert holder == ""


def test_what_failed_is_listed_with_reason_and_place(runs_folder, capsys, monkeypatch):
    folder = cheap_study(runs_folder)
    (folder / "logs").mkdir()
    log = folder / "logs" / "dense-seed0.log"
    log.write_text("Executing\nParameterError: lr: 3 must be\n\n")
    monkeypatch.setattr(scheduler, "_wait", lambda command: 1)
    with pytest.raises(SystemExit) as left:
        commands.main(["study", "cheap", "0"])
    assert left.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "  failed: dense-seed0: ParameterError: lr: 3 must be",
        f"          {folder / 'notebooks' / 'dense-seed0.ipynb'}",
        "  not made: control-seed0",
        "cheap: 0 of 2 runs done, 1 failed; `make resume STUDY=cheap` goes on",
    ]
    log.write_text("Executing notebook")
    assert scheduler.unfinished("cheap") == {
        "dense-seed0": "was killed, or never began",
        "control-seed0": "",
    }


def record_of(name, perplexity):
    run = expansion.plan("smoke")[name]
    training = {"steps": 4, "tokens": 512, "seconds": 3.0}
    content = measured(perplexity, sparsity=0.0) | {"training": training}
    records.write(records.open_run(run.notebook, run.parameters), **content)


def test_table_and_figure_of_what_there_is_say_what_is_missing():
    for name in ("zero-shot-seed0", "dense-seed0"):  # no control to compare with
        record_of(name, 30.0)
        found, _ = records.read_study("smoke")
        table = frames.frame(found, **expansion.context("smoke"))
        plots.perplexity_by_sparsity(table, "title")
    shown = tables.plain(table)
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "missing" not in lines["fine-tuned"] and "30.00" in lines["fine-tuned"]
    for label in ("gradual", "gradual + teacher", "dense control: fine-tuned for as long"):
        assert "1 of 1 missing" in lines[label]
    assert tables.answer(table) == ""


def test_a_clock_set_back_gives_no_negative_time(monkeypatch):
    run = records.open_run("01_baselines", expansion.plan("smoke")["dense-seed0"].parameters)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    assert 0 <= records.write(run, **measured())["seconds"] < 60


plain = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=9)
names = some.sampled_from([*parameters.PARAMETERS, "optional", "x"]) | some.text(max_size=5)
anything = some.recursive(
    plain, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@quick
@given(some.binary(max_size=200) | some.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_mapping_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "mine.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(yaml_files.read(path, "study"), dict)
    except ParameterError as error:
        assert len(str(error).splitlines()) == 1


@quick
@given(names, anything)
def test_any_value_is_a_parameter_or_one_line(name, value):
    try:
        assert parameters.check(name, value) == value
    except ParameterError as error:
        assert str(error).startswith(f"{name}: ") or not name.isprintable()


entries = some.none() | some.dictionaries(names, anything, max_size=3) | anything
recipes = some.sampled_from(["dense", "control", "gradual", "x"]) | some.text(max_size=5)
books = some.sampled_from(["01_baselines", "02_pruning", "x"])
groups = some.dictionaries(recipes, entries, max_size=3) | anything
contents = some.fixed_dictionaries(
    {"study": some.just("mine") | anything},
    optional={
        "notebooks": some.dictionaries(books, groups, max_size=2) | anything,
        "parameters": some.dictionaries(names, anything, max_size=3) | anything,
        "published": anything, "results": anything, "x": anything,
    },
)  # fmt: skip


@quick
@given(contents)
def test_any_study_file_is_planned_or_refused(tmp_path_factory, content):
    with pytest.MonkeyPatch.context() as patch:
        runs = tmp_path_factory.getbasetemp() / "fuzz"
        patch.setenv("PRUNEGPT_RUNS", str(runs))
        (runs / "mine").mkdir(parents=True, exist_ok=True)
        (runs / "mine" / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
        try:
            for name, run in expansion.plan("mine").items():
                assert expansion.run_name(run.parameters) == name and set(name) <= ALLOWED
        except ParameterError as error:
            assert str(error)
        assert [path.name for path in runs.iterdir()] == ["mine"]


ALLOWED = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
