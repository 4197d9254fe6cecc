"""Records that were damaged, edited, copied or lie are named, and what is left to do is listed."""

import json
import os
import time

import pytest
from conftest import ROOT, measured, tiny_gpt2

from prunegpt_utils import __main__ as commands
from prunegpt_utils import masks
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import study_graph
from prunegpt_utils.runs import estimate, expansion, records, trainings, validation

P = {"study": "smoke", "recipe": "gradual", "seed": 0, "sparsity": 0.9, "steps": 6, "batch": 2}


def written(**changes):
    """A sound record, and where it lies."""
    run = records.open_run("02_pruning", P | changes)
    training = {"steps": 6, "tokens": 768, "seconds": 3.0, "history": []}
    record = records.write(run, **measured(20.1) | {"training": training})
    record["environment"]["dirty"] = False
    path = run.folder / "records" / f"{run.name}.json"
    records.put(path, record)
    return path


def test_a_sound_record_has_no_problem():
    written()
    assert list(validation.validate("smoke")) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["metrics"]["validation"].update(perplexity=19.0), "was changed after it was written"),
        (lambda r: r.update(seed=1), "was changed after it was written"),
        (lambda r: r.pop("checksum"), "checksum: None must be a str"),
        (lambda r: r.pop("metrics"), "metrics: None must be a dict"),
        (lambda r: r.update(seconds="long"), "seconds: 'long' must be a float"),
    ],
)  # fmt: skip
def test_edited_by_hand(edit, message):
    path = written()
    record = records.read(path)
    edit(record)
    path.write_text(json.dumps(record))
    (problem,) = validation.validate("smoke")
    assert problem.startswith(f"{path.name}: {message}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(run="dense-seed0"), "is the record of dense-seed0 of smoke"),
        (lambda r: r["parameters"].update(sparsity=90.0), "sparsity: 90.0 must lie in"),
        (lambda r: r["metrics"]["test"].update(nll="nan"), "metrics.test.nll is 'nan'"),
        (lambda r: r["metrics"]["test"].update(nll="inf"), "metrics.test.nll is 'inf'"),
        (lambda r: r["environment"].update(dirty=True), "was written by code that was not committed"),
    ],
)  # fmt: skip
def test_wrong_from_the_start(edit, message):
    path = written()
    record = records.read(path)
    edit(record)
    records.put(path, record)
    (problem,) = validation.validate("smoke")
    assert problem.startswith(f"{path.name}: {message}")


FIDELITY = {
    "reference": "control-seed0", "tokens": 900, "kl": 0.2, "same_top": 0.7, "flips_to_wrong": 0.1,
    "flips_to_right": 0.05, "ece": 0.02, "reference_ece": 0.03,
}  # fmt: skip


def measured_twice(**changes):
    """A record with fidelity and losses by window, some of it changed."""
    path = written()
    record = records.read(path)
    window, nll = record["protocol"]["block_size"] - 1, record["metrics"]["test"]["nll"]
    record |= {
        "fidelity": FIDELITY | changes,
        "nll_by_window": {"test": [nll] * (900 // window + 1)},
    }
    return path, record


def test_what_was_measured_twice_agrees():
    path, record = measured_twice()
    records.put(path, record)
    assert list(validation.validate("smoke")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"same_top": 1.1}, "fidelity.same_top is 1.1"),
        ({"kl": -0.1}, "fidelity.kl is -0.1"),
        ({"ece": "low"}, "fidelity.ece is 'low'"),
        ({"tokens": 0}, "fidelity.tokens is 0"),
        ({"same_top": 0.9}, "fidelity: 1.0500 is the sum of shares of tokens that exclude one another"),
        ({"reference": "gradual-s90-seed0"}, "is compared with itself"),
    ],
)  # fmt: skip
def test_a_fidelity_that_cannot_be(changes, message):
    path, record = measured_twice(**changes)
    records.put(path, record)
    (problem,) = validation.validate("smoke")
    assert problem.startswith(f"{path.name}: {message}")


@pytest.mark.parametrize("losses", [[3.0], [], [9.0] * 30])
def test_windows_that_are_not_those_of_the_metrics(losses):
    path, record = measured_twice()
    record["nll_by_window"]["test"] = losses
    records.put(path, record)
    (problem,) = validation.validate("smoke")
    assert "nll_by_window: test: its mean is not the nll of the metrics" in problem
    record["nll_by_window"] = {"nosuch": []}
    assert "nll_by_window: nosuch: " in next(validation._measurement_problems(record))


def test_a_perplexity_may_overflow():
    path = written()
    record = records.read(path)
    record["metrics"]["test"] |= {"nll": 800.0, "perplexity": "inf"}
    records.put(path, record)
    assert list(validation.validate("smoke")) == []


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[]", "null"])
def test_damaged_files_are_named(text):
    path = written()
    path.write_text(text)
    (problem,) = validation.validate("smoke")
    assert problem.startswith(path.name)


def test_a_run_that_is_there_twice():
    path = written()
    copy = path.with_name("gradual-s90-seed7.json")
    copy.write_bytes(path.read_bytes())
    assert [p for p in validation.validate("smoke") if "has the parameters of" in p]


def test_a_checkpoint_of_another_sparsity():
    path = written()
    model = tiny_gpt2()
    masks.prune(model, "magnitude", 0.5, "global")
    model.save_pretrained(path.parent.parent / "models" / path.stem)
    (problem,) = validation.validate("smoke")
    assert "says 90.000 % of zeros; its checkpoint has 50.000 %" in problem


def test_rerun_names_the_records_there_are():
    written()
    with pytest.raises(
        ParameterError, match="run: 'x' has no record in smoke; there are: gradual-s90"
    ):
        validation.rerun("smoke", "x")


@pytest.mark.parametrize("recorded", [{}, {"reference": "control"}])
def test_a_run_that_was_compared_with_none_is_made_again_alone(monkeypatch, recorded):
    written(**recorded)
    made = []
    monkeypatch.setattr(validation.execution, "execute", lambda spec, _: made.append(spec))
    validation.rerun("smoke", "gradual-s90-seed0")
    assert made[0].parameters == P | {"reference": recorded.get("reference", "")}


@pytest.mark.parametrize("command", ["rerun", "export"])
@pytest.mark.parametrize("name", ["", "/", "x", "x/", "/x", "../x/y", "x/../y", "x/y/z", "x y/z"])
def test_what_names_no_run_is_one_line(command, name):
    with pytest.raises(SystemExit, match="^error: RUN: .* must be a study and a run") as left:
        commands.main([command, name])
    assert len(str(left.value.code).splitlines()) == 1


@pytest.mark.parametrize("command", ["rerun", "export"])
def test_a_run_that_is_not_there_is_one_line(command):
    for name in ("nosuch/x", "pydocs/x"):
        with pytest.raises(SystemExit, match="^error: ") as left:
            commands.main([command, name])
        assert len(str(left.value.code).splitlines()) == 1


def test_an_estimate_counts_and_judges_by_what_was_measured(runs_folder):
    first = estimate.estimate("smoke")
    assert first["done"] == [] and set(first["todo"]) == set(expansion.plan("smoke"))
    path = written()
    record = records.read(path)
    record["seconds"] = 10.0  # of which 3 were training, over 768 tokens
    records.put(path, record)
    again = estimate.estimate("smoke")
    assert again["done"] == ["gradual-s90-seed0"]
    p = expansion.plan("smoke")["gradual-s90-seed0"].parameters
    mine = [records.read(path)]
    assert estimate._seconds(mine, p) == pytest.approx(7 + 3 / 768 * 6 * 2 * p["block_size"])
    assert estimate._seconds([], p) is None and estimate._seconds(mine, p | {"epochs": 3}) is None


def test_status_lists_what_runs_and_what_failed(runs_folder, capsys):
    path = written()
    study = path.parent.parent
    busy, stale, other = (trainings.folder() / name / "progress.txt" for name in "abc")
    for file, label in (
        (busy, "smoke/dense-seed0"), (stale, "smoke/control-seed0"), (other, "mine/gradual")
    ):  # fmt: skip
        file.parent.mkdir(parents=True)
        file.write_text(f"{label}: 40 % 4/10 steps\n")
    os.utime(stale, (time.time() - 500,) * 2)
    (study / "logs").mkdir()
    (study / "logs" / "control-seed0.log").write_text("...\nParameterError: lr: 3 must be\n\n")
    (study / "logs" / "gradual-s90-seed0.log").write_text("done")
    commands.main(["status", "smoke"])
    assert capsys.readouterr().out.splitlines() == [
        f"smoke: 1 of {len(expansion.plan('smoke'))} runs done",
        "  running  dense-seed0: 40 % 4/10 steps",
        "  not done control-seed0: ParameterError: lr: 3 must be",
    ]


def test_check_results_exits_with_an_error(capsys):
    written().write_text("{")
    with pytest.raises(SystemExit) as left:
        commands.main(["check-results", "smoke structured"])
    said = capsys.readouterr().out
    assert left.value.code == 1 and "1 records read, 1 problems" in said
    assert "structured: " in said, "the second is read, too"


def test_the_graph_has_every_recipe():
    plan = expansion.plan("smoke")
    figure = study_graph.study_graph(plan, {"dense-seed0"})
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert {text.split("\n")[0] for text in labels} == {
        run.parameters["recipe"] for run in plan.values()
    }
    assert "dense\n1 of 1 done" in labels


def test_published_records_have_no_problem():
    for folder in (ROOT / "results").iterdir():
        assert list(validation.validate(folder.name)) == []
