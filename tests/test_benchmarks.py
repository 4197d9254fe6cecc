"""Every benchmark runs, writes its record, and refuses a fast path that is not the plain one."""

import importlib
import json
import re
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT

from benchmarks import (
    compiled,
    global_threshold,
    mask_cost,
    perplexity,
    side_by_side,
    table,
    threads,
    training_step,
)
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import paths, records


def record_of(name):
    path = importlib.import_module(f"benchmarks.{name}").main(["--smoke"])
    return path, json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("name", table.ORDER)
def test_each_benchmark_runs_and_says_on_what(name, runs_folder):
    path, record = record_of(name)
    assert path.parent == runs_folder.resolve() / "benchmarks-smoke"
    assert record["rows"] and record["checksum"] == records.checksum(record)
    for row in record["rows"]:
        assert float(row["value"]) == row["value"], row
        assert all(isinstance(row[key], str) for key in ("case", "against", "measure", "goal"))
    assert {"device", "threads", "torch", "commit", "dirty"} <= set(record["environment"])
    assert any("seconds" in row for row in record["rows"])


@pytest.mark.parametrize("arm", ["ours", "peer"])
@pytest.mark.parametrize("taught", [{}, training_step.TAUGHT])
def test_what_is_timed_are_the_steps_and_nothing_else(arm, taught):
    """Neither evaluations nor the small passes by which our loop gets to know a model."""
    config = TrainConfig(
        4, 1e-4, batch=2, evaluations=2, warmup=0.0, lr_schedule="linear", **taught
    )
    text = side_by_side.random_ids(8, 17, vocabulary=97)
    # of its own, for what a training asks of the memory allocator holds for all of a process
    _, gaps = side_by_side.in_new_process(getattr(training_step, arm), "tiny", text, config)
    assert len(gaps) == 3


def test_every_script_is_in_the_table():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts - {"side_by_side", "table", "verify_gpt2"} == set(table.ORDER)
    recipe = re.search(r"^BENCHMARKS :=((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert recipe.replace("\\", "").split() == list(table.ORDER)


@pytest.mark.parametrize("target", ["lab", "notebooks"])
def test_notebooks_wait_as_the_benchmark_does(target):
    """Unless the user has said otherwise, and nothing else is told how to wait."""
    makefile = (ROOT / "Makefile").read_text()
    targets, policy = re.search(
        r"^([a-z ]+): export OMP_WAIT_POLICY \?= (\w+)$", makefile, re.M
    ).groups()
    assert target in targets.split() and policy == threads.POLICY


def test_without_a_compiler_one_benchmark_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "COMPILER", "no-such-compiler")
    assert compiled.main([]) is None
    assert "no-such-compiler is not here" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*table.ORDER, "table"])
def test_help_names_the_question(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0 and module.__doc__.splitlines()[0] in capsys.readouterr().out


def test_turns_alternate_and_do_not_count_the_warm_up():
    done = []
    acts = {name: (lambda name=name: done.append(name)) for name in "ab"}
    seconds = side_by_side.time_in_turns(acts, 3)
    assert done == ["a", "b"] * 4 and [len(times) for times in seconds.values()] == [3, 3]


def test_the_slope_of_a_power_is_its_exponent():
    xs = [1, 10, 50]
    assert side_by_side.slope(xs, [3 * x**1.5 for x in xs]) == pytest.approx(1.5)


def test_operations_of_the_limit_are_counted():
    _, operations = side_by_side.products([(3, 5), (5, 2)], 7, torch.float32)
    assert operations == 6 * 7 * (3 * 5 + 5 * 2)


@pytest.mark.parametrize(("goal", "met"), [(">= 2", True), ("<= 2", False), ("<= 3", True)])
def test_a_goal_is_met_or_missed(goal, met):
    assert side_by_side.row("a", "b", "times as fast", 2.5, goal)["met"] is met


def test_a_wrong_perplexity_stops_the_benchmark(monkeypatch):
    right = perplexity.token_nll
    monkeypatch.setattr(perplexity, "token_nll", lambda *rest: right(*rest) * 1.01)
    with pytest.raises(AssertionError, match="the guide's loop"):
        perplexity.main(["--smoke"])


def test_a_mask_that_does_not_hold_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(mask_cost, "apply_masks", lambda *_: None)
    with pytest.raises(AssertionError):
        mask_cost.main(["--smoke"])


def test_an_inexact_count_stops_the_benchmark(monkeypatch):
    right = global_threshold.prune
    monkeypatch.setattr(
        global_threshold, "prune", lambda model, name, _, scope: right(model, name, 0.8, scope)
    )
    with pytest.raises(AssertionError):
        global_threshold.main(["--smoke"])


def test_the_peak_memory_of_an_act_is_seen():
    act = partial(torch.ones, 16_000_000)
    found = side_by_side.in_new_process(global_threshold.peak_memory, act)
    assert 0.9 < found / 64e6 < 1.5


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A README with markers, and a record as `make bench` leaves it."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    readme = tmp_path / "benchmarks" / "README.md"
    readme.parent.mkdir()
    readme.write_text("before\n<!-- bench -->\nan earlier table\n<!-- end bench -->\nafter\n")
    monkeypatch.setattr(
        records, "environment",
        lambda: {"dirty": False, "device": "cpu x", "threads": 2, "torch": "1", "transformers": "2",
                 "commit": "0123456789"},
    )  # fmt: skip
    row = side_by_side.row("step, 2M", "Trainer", "times as fast", 1.2345, ">= 1.3")
    side_by_side.write("training_step", "training step", [row])
    return readme


def test_the_table_comes_from_the_records(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table"])
    table.main()
    text = project.read_text()
    link = "[step, 2M](results/training_step-cpu.json)"
    assert f"| {link} | Trainer | 1.23 times as fast | at least 1.3 | missed |" in text
    assert (
        "| training step, H200 |  | not run |  |  |" in text
        and "| mask cost, CPU |  | not run" in text
    )
    assert "Run on cpu x, 2 threads, torch 1, transformers 2, at 0123456." in text
    assert text.startswith("before\n<!-- bench -->\n|") and text.endswith(
        "<!-- end bench -->\nafter\n"
    )
    assert "an earlier table" not in text
    table.main()
    assert project.read_text() == text
    assert [path.name for path in table.published().iterdir()] == ["training_step-cpu.json"]


def test_the_curves_are_drawn_in_the_order_of_their_numbers(project):
    powers = {x: [2.0 * x] for x in (20, 300, 1000)}  # as text, 1000 comes first
    rows = [side_by_side.row("a", "", "slope", 1.0, seconds=powers, axes=["x", "y"])] * 4
    record = records.load(side_by_side.write("scaling", "how it grows", rows))
    panels = table.scaling.draw(record).axes
    assert [list(panel.lines[0].get_xdata()) for panel in panels] == [list(powers)] * 4
    table.main([])
    assert (
        "![How time and memory grow, log-log](../figures/benchmarks/scaling.png)"
        in project.read_text()
    )
    assert (project.parents[1] / "figures" / "benchmarks" / "scaling.png").exists()


def test_a_readme_without_markers_is_left_alone(project):
    project.write_text("nothing here\n")
    with pytest.raises(ParameterError, match=r"page: 'bench' must have one <!-- bench -->"):
        table.main([])
    assert project.read_text() == "nothing here\n" and not table.published().exists()


def test_records_of_uncommitted_files_are_not_published(project, monkeypatch):
    where = records.environment() | {"dirty": True}
    monkeypatch.setattr(records, "environment", lambda: where)
    side_by_side.write("mask_cost", "cost", [])
    with pytest.raises(ParameterError, match="mask_cost-cpu.* was made from a tree with changes"):
        table.main([])
    assert not table.published().exists()
