"""What is missing, overflowed or odd in records: tables and figures say so, and claim nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import measured, scored

from prunegpt_utils import corpora
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import figure_files, frames, html, model_plots, plots, statistics, tables
from prunegpt_utils.runs import records

P = {"study": "odd", "init_from": "dense", "steps": 10, "lr": 0.002, "batch": 8, "block_size": 32}
PRUNED = {"prune_until": 0.5, "scope": "global", "criterion": "fisher", "lr_scaling": 0.5}
TEACHER = {"alpha": 0.67, "temperature": 2.0, "teacher": "control", "baseline": "gradual"}


def run_of(recipe, seed=0, perplexity=20.0, asked=0.0, found=None, **p):
    """A record as the report reads it; `found` is the sparsity that was measured."""
    p = P | {"recipe": recipe, "seed": seed} | p
    p |= (PRUNED | {"sparsity": asked} | p) if asked else {}
    share = asked if found is None else found
    return {
        "recipe": recipe, "base_recipe": recipe, "axes": {}, "seed": seed, "parameters": p,
        "run": f"{recipe}-s{100 * asked:g}-seed{seed}", "notebook": "02_pruning", "study": "odd",
        "sparsity": {"requested": asked, "prunable": share, "model": share / 2},
        "metrics": {split: scored(1.0) | {"perplexity": perplexity} for split in ("validation", "test")},
        "training": {"steps": 10, "tokens": 80, "seconds": 1.0},
        "model": {"name": "tiny", "parameters": 9, "prunable": 8},
        "data": {"name": "text", "sha256": "ab" * 32},
        "protocol": {"name": "disjoint", "block_size": 32, "stride": 32, "joiner": ""},
    }  # fmt: skip


def test_runs_are_grouped_by_what_was_asked_not_by_what_was_measured():
    found = [run_of("control"), run_of("control", 1)]
    found += [
        run_of("gradual", 0, 30.0, 2 / 3, 0.66649),
        run_of("gradual", 1, 32.0, 2 / 3, 0.66651),
    ]
    (row,) = frames.summary(frames.frame(found)).query("recipe == 'gradual'").itertuples()
    assert (row.perplexity, row.seeds, row.spread) == (31.0, [0, 1], pytest.approx(2**0.5))
    assert "| gradual | 67 % | 31.00 ± 1.41 | 1.55 | 31.00 ± 1.41 | 1.55 |" in tables.markdown(
        frames.frame(found), "x"
    )
    rows = frames.with_one_shot(frames.frame(found), frames.one_shot_curves([]))
    assert rows.level.tolist() == ["66.6667 %"] * 2


def test_two_shares_of_neurons_that_remove_the_same_are_two_rows():
    found = [
        run_of("narrow", 0, 30.0, neuron_sparsity=n, head_sparsity=h) | {"removed_share": 0.5}
        for n, h in ((0.75, 0.0), (0.25, 0.5))
    ]
    assert frames.summary(frames.frame(found)).seeds.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True), ({"rounds": 0, "regrow_decay": 0.0}, True),  # which notebook 03 lacks
        ({"one_shot_run": "one-shot"}, True), ({"lr": 0.001}, False), ({"steps": 20}, False),
        ({"criterion": "magnitude"}, False), ({"seed": 1}, False), ({"init_from": ""}, False),
        ({"rounds": 4}, False), ({"alpha": 0.5}, False),
    ],
)  # fmt: skip
def test_a_gain_is_against_the_same_run_without_the_teacher(changed, same):
    taught = run_of("gradual-distilled", 0, 25.0, 0.9, **TEACHER) | {
        "nll_gain_over_baseline": {"mean": 1}
    }
    alone = run_of("gradual", perplexity=30.0, asked=0.9, **changed)
    found = [run_of("control"), alone, taught]
    table = frames.frame(found)
    assert frames.gains(table).alone.tolist() == ([30.0] if same else [])
    assert ("without one 1.50 x" in tables.answer(table)) == same
    assert list(frames.nll_gains(found)) == ([taught["run"]] if same else [])


def test_a_gain_over_another_run_is_none():
    """The first release compared with whatever `baseline` named."""
    taught = run_of("gradual-distilled", 0, 25.0, 0.9, **TEACHER | {"baseline": "control"})
    taught["nll_gain_over_baseline"] = {"mean": 1}
    assert frames.nll_gains([run_of("control"), run_of("gradual", 0, 30.0, 0.9), taught]) == {}


def test_nothing_removed_and_taught_is_compared_with_the_control():
    """How it would prune does not matter where nothing is pruned."""
    taught = run_of("dense-distilled", 0, 19.0, scope="global", sparsity_start=0.5, lr_scaling=0.5,
                    sparsity=0.0, **TEACHER | {"baseline": "control"})  # fmt: skip
    assert frames.gains(frames.frame([run_of("control"), taught])).alone.tolist() == [20.0]


def test_the_answer_is_of_seeds_that_have_all_it_needs():
    found = [run_of("control"), run_of("control", 1)]
    found += [run_of("gradual", 0, 30.0, 0.9)]
    found += [
        run_of("gradual-distilled", seed, ppl, 0.9, **TEACHER)
        for seed, ppl in ((0, 25.0), (1, 90.0))
    ]
    text = tables.answer(frames.frame(found))
    assert "with a teacher 1.25 x" in text and "without one 1.50 x" in text
    assert tables.answer(frames.frame(found[2:])) == ""  # no control, no ratio


def test_a_perplexity_that_overflowed_is_inf_and_nothing_else():
    found = [run_of("control"), run_of("gradual", 0, "inf", 0.9), run_of("gradual", 1, 30.0, 0.9)]
    text = tables.markdown(frames.frame(found), "x")
    assert "| gradual | 90 % | inf |  | inf |  | [0]" in text and "nan" not in text
    assert tables.number(math.nan) == "-" and tables.number(math.inf) == "inf"


def test_half_width_of_few_seeds():
    two = pd.Series([1.0, 3.0])  # s = sqrt 2, sem = 1, t of one degree of freedom
    assert statistics.half_width(two) == pytest.approx(12.706204736432095)
    for few in ([], [1.0], [1.0, math.nan]):
        assert math.isnan(statistics.half_width(pd.Series(few, dtype=float)))


EMPTY = frames.frame([])
NO_CURVE = frames.one_shot_curves([])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.perplexity_by_sparsity(EMPTY, "T"),
        lambda: plots.perplexity_by_sparsity(
            frames.frame([run_of("control", perplexity="inf")]), "T"
        ),
        lambda: plots.perplexity_by_cost(frames.costs([]), "bytes"),
        lambda: plots.perplexity_by_steps(frames.by_steps([]), "T"),
        lambda: plots.criteria_curves(NO_CURVE),
        lambda: plots.before_and_after(frames.with_one_shot(EMPTY, NO_CURVE), math.nan, "T"),
        lambda: plots.changes(pd.DataFrame({"change": [], "seed": [], "percent": []}), "T"),
        lambda: plots.changes(pd.DataFrame({"change": ["a"], "seed": 0, "percent": np.inf}), "T"),
        lambda: model_plots.training_history({"a": ([], "#000000"), "b": (None, "#000000")}),
    ],
)  # fmt: skip
def test_a_figure_without_data_is_left_out_with_a_line(draw, capsys, tmp_path):
    figure = draw()
    assert figure is None and capsys.readouterr().out.startswith("No figure of ")
    assert figure_files.save(figure, tmp_path, "x") is None and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
def test_figures_leave_out_what_overflowed():
    found = [run_of("control", perplexity="inf"), run_of("zero-shot", perplexity=50.0)]
    found += [
        run_of("gradual", 0, ppl, share) for share, ppl in ((0.5, 30.0), (0.8, "inf"), (0.9, 90.0))
    ]
    found[1]["training"]["steps"] = 0
    table = frames.frame(found)
    figure = plots.perplexity_by_sparsity(table, "T")
    figure.canvas.draw()
    drawn = figure_files.points(figure).set_index(["series", "x"]).y.to_dict()
    assert drawn == {("gradual", 0.5): 30, ("gradual", 0.9): 90, ("pretrained, zero-shot", ""): 50}
    plots.perplexity_by_cost(frames.costs(found), "bytes").canvas.draw()
    rows = frames.with_one_shot(table, NO_CURVE)
    plots.before_and_after(rows, math.inf, "T").canvas.draw()


def test_a_map_of_matrices_that_not_every_block_has():
    shares = {"model.layers.0.mlp.experts.gate_up_proj": 10.0, "model.layers.0.mlp.experts.down_proj": 20.0,
              "model.layers.1.mlp.up_proj.weight": 30.0}  # fmt: skip
    figure = model_plots.layer_profile(shares, "T")
    drawn = figure_files.points(figure).set_index(["series", "x"]).y.to_dict()
    assert drawn == {
        ("block 0", "mlp.experts.gate_up_proj"): 10, ("block 0", "mlp.experts.down_proj"): 20,
        ("block 1", "mlp.up_proj"): 30,
    }  # fmt: skip
    assert "block 1" in figure_files.description(figure)


def test_methods_tell_variants_apart():
    variants = [run_of("gradual", 0, 30.0, 0.9), run_of("gradual-lr0.1", 0, 90.0, 0.9, lr=0.1)]
    variants[1] |= {"base_recipe": "gradual", "axes": {"lr": 0.1}}
    rows = frames.with_one_shot(frames.frame(variants), NO_CURVE)
    assert rows.method.tolist() == ["gradual", "gradual-lr0.1"]


@pytest.mark.parametrize(
    ("notebook", "recipe", "more"),
    [
        ("00_pretraining", "pretraining", {}),
        ("01_baselines", "zero-shot", {}),
        ("06_criteria", "criteria", {"one_shot_curve": [], "nll_gaps": [], "sensitivity": {"h.0.a.weight": 1.0}}),
        ("02_pruning", "x" * 150 + ".y", {"sample": {"read": [], "written": {}}}),
    ],
)  # fmt: skip
def test_a_report_of_one_kind_of_run(runs_folder, notebook, recipe, more):
    p = {"study": "odd", "recipe": recipe, "seed": 0}
    content = measured(20.0, 0.0) | more
    content["metrics"]["test"]["perplexity"] = "inf"
    records.write(records.open_run(notebook, p), **content)
    text = html.build("odd").read_text("utf-8")
    assert "1 runs" in text and "does not hold the runs that answer the question" in text
    assert (runs_folder / "odd" / "report" / "records" / f"{recipe}-seed0.html").exists()


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(ParameterError, match="packages: 'no_such_package' is not installed"):
        corpora.package_docs(["no_such_package"])
