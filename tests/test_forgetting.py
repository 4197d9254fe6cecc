"""What is left of an ability, worked by hand, and the figure that shows it."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import cuts, figure_files, forgetting, frames, recovery


def scores(digits, chance=0.25, name="items"):
    acc = np.mean([int(digit) for digit in digits])
    by = {"syntax": {"metrics": {"acc": float(acc), "acc_stderr": 0.1}, "samples": len(digits)}}
    metrics = {"acc": float(acc), "acc_stderr": 0.1}
    return {"metrics": metrics, "chance": chance, "samples": len(digits), "sha256": name * 13,
            "correct": digits, "by": by}  # fmt: skip


def test_what_is_left_is_counted_from_a_guess():
    found = forgetting.retained(scores("1100" * 10), scores("1110" * 10))
    assert (found["accuracy"], found["dense"], found["share"]) == (0.5, 0.75, 0.5)
    # of each item (a - c) - share (d - c): 3/8, 3/8, -5/8, -1/8; error of the mean of 40, over 0.5
    half = 1.96 * math.sqrt(11 / 64 * 40 / 39 / 40) / 0.5
    assert found["high"] - found["share"] == pytest.approx(half)
    assert found["share"] - found["low"] == pytest.approx(half)
    dense = scores("1110")
    same = forgetting.retained(dense, dense)
    assert (same["share"], same["low"], same["high"]) == (1, 1, 1)


def test_another_model_with_the_same_answers_is_not_known_to_be_the_same():
    found = forgetting.retained(scores("1110"), scores("1110"))
    assert (found["share"], found["low"], found["high"]) == (1, -0.5, 2.5)  # 3 / 4 of 1 / 2


@pytest.mark.parametrize("right", range(forgetting.FEW))
def test_few_right_answers_have_exact_intervals(right):
    """Of each end a binomial distribution has as much beyond what was seen as it should."""
    found = forgetting.retained(scores("1" * right + "0" * (94 - right), 0), scores("10" * 47, 0))
    assert found["share"] == pytest.approx(right / 47)
    above = stats.binom(94, found["high"] / 2).cdf(right)
    below = stats.binom(94, found["low"] / 2).sf(right - 1)
    assert above == pytest.approx(0.025) and below == pytest.approx(0.025 if right else 1)
    assert found["low"] >= 0


def test_a_dense_model_that_only_guesses_has_nothing_to_lose():
    assert math.isnan(forgetting.retained(scores("1100"), scores("1000"))["share"])


def test_other_items_are_not_compared():
    with pytest.raises(ValueError, match="not scored on the same items"):
        forgetting.retained(scores("1100"), scores("1110", name="other"))


def cut_record(criterion="sparsegpt", scored=("11111110", "11110000", "00000000")):
    """A dense model and its cuts at 30 and 80 %, scored on two tasks."""
    whole, *cut = ({"blimp": scores(d, 0.5), "capitals_produced": scores(d, 0)} for d in scored)
    points = [
        {"sparsity": share, "criterion": criterion, "scope": "uniform", "tasks": tasks,
         "validation": loss(20 * (1 + share)), "also": {"wiki": loss(30 * (1 + 2 * share))}}
        for share, tasks in zip((0.3, 0.8), cut, strict=True)
    ]  # fmt: skip
    return {"model": {"name": "tiny"}, "seed": 0, "metrics": {"validation": loss(20)}, "tasks": whole,
            "also_scored": {"wiki": {"metrics": loss(30)}}, "one_shot_curve": points}  # fmt: skip


def loss(perplexity):
    return {"perplexity": perplexity, "nll": math.log(perplexity)}


def test_a_row_a_cut_and_task_with_the_dense_model_first():
    rows = forgetting.by_task([cut_record()])
    blimp = rows[rows.task == "blimp"]
    assert blimp.sparsity.tolist() == [0, 0.3, 0.8] and blimp.share.iloc[0] == 1
    assert blimp.ratio.tolist() == pytest.approx([1, 1.3, 1.8])
    assert blimp.share.iloc[1] == 0  # four of eight is what a guess has
    assert rows[rows.task == "capitals_produced"].share.tolist() == pytest.approx([1, 4 / 7, 0])
    assert forgetting.by_task([cut_record() | {"one_shot_curve": []}]).empty
    assert len(forgetting.groups([cut_record()], "blimp")) == 3


def test_a_verdict_is_of_one_cut_and_of_what_was_scored():
    first = cut_record()
    text = forgetting.verdict([first])
    assert "writes 57 % (18 to 96) as many capital cities" in text
    assert "rises to 1.30 x on text of the kind that calibrated it and 1.60 x on wiki, " in text
    assert forgetting.answer([first]).count("\n") == 1
    for other in ({"seed": 1}, {"model": {"name": "other"}}):
        both = [first, cut_record() | other]
        assert forgetting.verdict(both) == forgetting.answer(both) == ""
    patterned = cut_record()
    for point in patterned["one_shot_curve"]:
        point["scope"] = "2:4"
    assert forgetting.verdict([first, patterned]) == forgetting.verdict([first])
    for point in (first, *first["one_shot_curve"]):
        del point["tasks"]["blimp"]
    assert forgetting.verdict([first]) == ""


def test_lost_is_what_the_interval_excludes():
    rows = forgetting.by_task([cut_record()])
    lost = forgetting.first_lost(rows).loc["SparseGPT"]
    assert lost.loc["capital, produced"].tolist() == [0.3, 0.8]  # 4/7 ± 0.37: less, and not a half
    assert lost.loc["grammar (BLiMP)", "less"] == 0.3


def test_items_that_the_dense_model_has_right_are_followed():
    items = forgetting.same_items([cut_record()], "capitals_produced", list("abcdefgh"))
    assert items.index.tolist() == list("abcdefg")
    assert items["SparseGPT", 0.3].tolist() == [True] * 4 + [False] * 3


def test_trained_runs_stand_beside_the_dense_one_of_their_seed():
    runs = [("control", 0, 0.0, 20.0), ("gradual", 0, 0.5, 30.0), ("gradual", 1, 0.5, 30.0)]
    found = [
        {"run": f"{recipe}-seed{seed}", "recipe": recipe, "base_recipe": recipe, "seed": seed,
         "parameters": {"reference": "control"}, "sparsity": {"prunable": share}, "metrics": {"validation": {"nll": math.log(ppl)}}}
        for recipe, seed, share, ppl in runs
    ]  # fmt: skip
    scored = {"control-seed0": {"blimp": scores("1111", 0.5)},
              "gradual-seed0": {"blimp": scores("1110", 0.5)},
              "gradual-seed1": {"blimp": scores("1111", 0.5)}}  # fmt: skip
    scored["gradual-seed0"]["lambada"] = scores("1111", 0)  # on which the dense run was not scored
    rows = recovery.trained(found, scored)
    assert rows.recipe.tolist() == ["control", "gradual"]  # seed 1 has no dense run
    assert rows.share.tolist() == [1, 0.5] and rows.ratio.tolist() == pytest.approx([1, 1.5])


def test_each_run_stands_beside_the_reference_that_it_names():
    runs = [("control-steps10", "", 20.0), ("control-steps99", "", 10.0), ("gradual-steps10", "control-steps10", 40.0),
            ("gradual-steps99", "control-steps99-seed0", 40.0)]  # fmt: skip
    found = [
        {"run": f"{recipe}-seed0", "recipe": recipe, "base_recipe": recipe.partition("-")[0], "seed": 0,
         "parameters": {"reference": reference}, "sparsity": {"prunable": 0.5 * bool(reference)},
         "metrics": {"validation": {"nll": math.log(ppl)}}}
        for recipe, reference, ppl in runs
    ]  # fmt: skip
    scored = {record["run"]: {"blimp": scores("1110", 0.5)} for record in found}
    rows = recovery.trained(found, scored).set_index("recipe")
    assert rows.ratio.to_dict() == pytest.approx({"gradual-steps10": 2, "gradual-steps99": 4})


def test_what_the_teacher_changes_is_counted_item_by_item():
    table = pd.DataFrame({
        "run": ["gradual-s50-seed0", "gradual-distilled-s50-seed0"],
        "untaught": [None, "gradual-s50-seed0"], "perplexity": [30.0, 24.0],
    })  # fmt: skip
    scored = {"gradual-s50-seed0": {"blimp": scores("110000", 0.5)},
              "gradual-distilled-s50-seed0": {"blimp": scores("101100", 0.5)}}  # fmt: skip
    (row,) = recovery.teacher_effect(table, scored).itertuples()
    assert (row.run, row.ratio, row.items) == ("gradual-distilled-s50-seed0", 0.8, 6)
    assert (row.without, row.taught, row.difference) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    # changes 0, -1, 1, 1, 0, 0: variance (3 - 6 / 36) / 5
    half = 1.96 * math.sqrt((3 - 1 / 6) / 5 / 6)
    assert (row.low, row.high) == pytest.approx((1 / 6 - half, 1 / 6 + half))
    alike = {run: {"blimp": scores("000000", 0.5)} for run in scored}
    (row,) = recovery.teacher_effect(table, alike).itertuples()
    assert (row.difference, row.low, row.high) == (0, -0.5, 0.5)  # 3 of 6 may be answered otherwise
    scored["gradual-s50-seed0"]["blimp"]["sha256"] = "other"
    with pytest.raises(ValueError, match="same items"):
        recovery.teacher_effect(table, scored)


def test_scores_of_a_whole_study_are_drawn_against_its_reference(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    found = [
        {"run": f"{recipe}-seed0", "recipe": recipe, "base_recipe": recipe, "seed": 0,
         "parameters": {"reference": "" if recipe == "control" else "control"},
         "sparsity": {"requested": share, "prunable": share},
         "metrics": {"validation": {"nll": 3.0 + share}}}
        for recipe, share in (("control", 0.0), ("gradual", 0.5))
    ]  # fmt: skip
    scored = {"control-seed0": {"blimp": scores("1111", 0.5)},
              "gradual-seed0": {"blimp": scores("1110", 0.5)}}  # fmt: skip
    monkeypatch.setattr(recovery, "read_study", lambda study: (found, tmp_path))
    monkeypatch.setattr(recovery.task_records, "scored", lambda folder: scored)
    path = recovery.save_recovered("mine")
    assert path == tmp_path / "mine" / "figures" / "recovered.png" and path.exists()
    drawn = pd.read_csv(path.with_suffix(".csv"))
    assert drawn.series.tolist() == ["trained: perplexity 1.65 x"] and drawn.x.tolist() == [0.5]
    scored.pop("gradual-seed0")
    assert recovery.save_recovered("mine") is None  # nothing that was cut has been scored


def test_recovery_is_drawn_a_panel_a_cut_of_what_validation_chose():
    figure_files.style()
    arms = [("gradual", "global", 0.5, 1.5, 0.6), ("gradual-distilled", "global", 0.5, 1.2, 0.8),
            ("control", "", 0, 1, 1), ("two-four-distilled", "2:4", 0.5, 1.7, 0.1),
            ("two-four-distilled", "2:4", 0.5, 1.3, 0.2)]  # fmt: skip
    rows = pd.DataFrame([
        {"base_recipe": recipe, "recipe": f"{recipe}-{ratio}", "requested": share, "ratio": ratio,
         "level": frames.level(scope, share), "task": task,
         "share": left, "low": left - 0.1, "high": left + 0.1}
        for recipe, scope, share, ratio, left in arms for task in ("blimp", "lambada")
    ])  # fmt: skip
    drawn = figure_files.points(recovery.recovered(rows))
    assert set(drawn.series) == {
        "trained: perplexity 1.50 x", "trained with a teacher: perplexity 1.20 x",
        "trained with a teacher: perplexity 1.30 x",
    }  # fmt: skip
    assert set(drawn.panel) == {"50 % of the block weights gone", "two of four neighbours gone"}
    assert drawn[drawn.series.str.contains("teacher")].x.tolist() == [0.8, 0.8, 0.2, 0.2]


def test_the_figure_says_its_numbers():
    figure_files.style()
    figure = forgetting.curves(
        forgetting.by_task(
            [cut_record(), cut_record("magnitude", ("11111111", "11110000", "11110000"))]
        )
    )
    drawn = figure_files.points(figure)
    assert set(drawn.panel) == {"SparseGPT", "magnitude"}
    produced = drawn[(drawn.panel == "SparseGPT") & (drawn.series == "capital, produced")]
    assert produced.y.tolist() == pytest.approx([1, 4 / 7, 0])


def test_several_seeds_are_averaged_and_scopes_have_panels():
    one, other = cut_record(), cut_record(scored=("11111110", "11111110", "11110000")) | {"seed": 1}
    rows = forgetting.by_task([one, other]).query("task == 'capitals_produced'")
    ends = rows.groupby("sparsity").high.mean()
    assert ends[0.3] > 1 > rows.high.min()  # one seed alone would say that it is less
    assert math.isnan(forgetting.first_lost(rows).less.iloc[0]) == (ends[0.8] >= 1)
    shown = forgetting.same_items([one, other], "capitals_produced", list("abcdefgh"))
    assert shown["SparseGPT", 0.3].tolist() == [True] * 4 + [False] * 3
    for point in other["one_shot_curve"]:
        point["scope"] = "global"
    figure = forgetting.curves(forgetting.by_task([one, other]))
    assert [axes.get_title("left") for axes in figure.axes] == [
        "SparseGPT, global", "SparseGPT, uniform",
    ]  # fmt: skip


def test_one_cut_with_two_outcomes_is_refused():
    assert len(cuts.cuts([cut_record(), cut_record()])) == len(cuts.cuts([cut_record()]))
    other = cut_record()
    other["one_shot_curve"][0]["validation"] = loss(21)
    with pytest.raises(
        ParameterError, match="'tiny' was cut in one way with two outcomes: sparsegpt"
    ):
        cuts.cuts([cut_record(), other])


def test_the_answer_is_of_one_criterion_and_says_its_intervals():
    text = forgetting.answer([cut_record("magnitude"), cut_record()])
    assert text.count("\n") == 1 and text.startswith("- **30 % of the block weights gone**")
    assert (
        "perplexity 1.30 x on text of the kind that calibrated it and 1.60 x on wiki; left" in text
    )
    assert "capital, produced 57 % (18 to 96)" in text
    assert forgetting.answer([cut_record("wanda")]) == ""
