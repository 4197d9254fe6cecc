"""What a run is compared with shares its text, protocol, window and batch, and its steps."""

import itertools
import json

import pytest
from test_best_dense import dense_at, ratios, run_at

from prunegpt_utils.report import best_dense, frames
from prunegpt_utils.runs import expansion, paths

OTHER = {
    "text": {"data": {"name": "hard", "sha256": "cd" * 32}},
    "text of the same name": {"data": {"name": "text", "sha256": "cd" * 32}},
    "protocol": {"protocol": {"name": "strided", "block_size": 32, "stride": 16, "joiner": ""}},
    "window": {"protocol": {"name": "disjoint", "block_size": 64, "stride": 64, "joiner": ""}},
}


def under(change, runs):
    """The same runs under another setting, named for it, at twice the perplexity."""
    for run in runs:
        metrics = {
            split: part | {"perplexity": 2 * part["perplexity"]}
            for split, part in run["metrics"].items()
        }
        yield run | change | {"run": f"other-{run['run']}", "metrics": metrics}


@pytest.mark.parametrize("what", OTHER)
def test_each_run_is_compared_within_its_setting(what):
    plain = [
        dense_at(0, 50.0),
        run_at("control", 0, 20.0, 20.0),
        run_at("gradual", 0, 30.0, 30.0, 0.9),
    ]
    both = [*plain, *under(OTHER[what], plain)]
    over = ratios(both).ratio
    assert over["gradual-s90-seed0"] == over["other-gradual-s90-seed0"] == 1.5
    assert len(best_dense.names(frames.frame(both))) == 2  # each says of which setting it is
    alone = [*plain, *under(OTHER[what], plain[2:])]
    assert ratios(alone).ratio.isna()["other-gradual-s90-seed0"], "it has no dense model"


def test_as_many_steps_of_more_windows_are_another_budget():
    found = [run_at("control", 0, 20.0), run_at("gradual", 0, 30.0, asked=0.9)]
    twice = {"parameters": found[1]["parameters"] | {"batch": 16}}
    over = ratios([*found, *under(twice, found[1:])]).ratio
    assert over["gradual-s90-seed0"] == 1.5 and over.isna()["other-gradual-s90-seed0"]


def test_settings_that_are_equal_are_not_named():
    table = frames.frame([run_at("control", 0, 20.0), run_at("gradual", 0, 30.0, asked=0.9)])
    assert set(table.model) == {"tiny"}


def test_a_few_zeros_by_chance_cost_no_bits_and_make_no_sparse_model():
    run = run_at("control") | {"model": {"name": "tiny", "parameters": 2000, "prunable": 1600}}
    few = run["sparsity"] | {"prunable": 0.0006}
    assert frames.stored_bytes(run | {"sparsity": few}) == frames.stored_bytes(run) == 8000
    pruned = run["sparsity"] | {"prunable": 0.5}
    assert frames.stored_bytes(run | {"sparsity": pruned}) == 4 * 1200 + 200
    over = ratios([run | {"sparsity": few}, run_at("gradual", 0, 30.0, asked=0.9)])
    assert over.ratio["gradual-s90-seed0"] == 1.5


def test_steps_are_those_of_the_whole_chain_and_of_the_run_that_the_plan_says(runs_folder):
    """Two lengths of the fine-tuning, and a third training that goes on from the second."""
    steps = {"steps": [100, 200]}
    content = {"study": "mine", "notebooks": {
        "01_baselines": {"dense": steps, "control": steps},
        "02_pruning": {"gradual": {"init_from": "control", "one_shot_run": ""} | steps},
    }}  # fmt: skip
    folder = paths.study_folder("mine")
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(json.dumps(content))
    goes_on_from, found = {"dense": "", "control": "dense", "gradual": "control"}, []
    for recipe, count in itertools.product(goes_on_from, (100, 200)):
        asked = 0.9 * (recipe == "gradual")
        run = run_at(recipe, asked=asked, axes={"steps": count}, steps=count, study="mine")
        run["parameters"]["init_from"] = goes_on_from[recipe]
        found.append(run | {"run": run["run"].replace("-s0-", "-")})
    assert {run["run"] for run in found} == set(expansion.plan("mine"))
    assert frames.frame(found).groupby("recipe").total.first().to_dict() == {
        "dense-steps100": 100, "dense-steps200": 200, "control-steps100": 200,
        "control-steps200": 400, "gradual-steps100": 300, "gradual-steps200": 600,
    }  # fmt: skip
