"""What a run is compared with is the best dense model: chosen on validation, reported on test."""

import math

import pytest
from conftest import scored
from test_report_gaps import TEACHER, run_of

from prunegpt_utils.config import peak_lr
from prunegpt_utils.report import best_dense, frames, pages, parts, tables


def run_at(recipe, seed=0, validation=20.0, test=20.0, asked=0.0, steps=10, axes=None, **more):
    """A record whose two texts differ; `more` replaces fields of the record."""
    p = {"steps": steps, **(axes or {}), **(TEACHER if "distilled" in recipe else {})}
    found = run_of(recipe, seed, validation, asked, **p)
    found["metrics"]["test"] = scored(test)
    found["training"] |= {"steps": steps, "best_step": steps}
    if axes:
        name = "-".join([recipe, *(f"{key}{value}" for key, value in axes.items())])
        found |= {"recipe": name, "axes": axes, "run": f"{name}-s{100 * asked:g}-seed{seed}"}
    return found | more


def ratios(found):
    return frames.frame(found).set_index("run")[["ratio", "test_ratio", "control_test_ratio"]]


def test_validation_chooses_and_test_is_reported():
    found = [
        run_at("control", 0, 20.0, 30.0), run_at("control", 1, 20.0, 40.0),
        run_at("dense-distilled", 0, 16.0, 50.0), run_at("dense-distilled", 1, 18.0, 60.0),
        run_at("gradual", 0, 24.0, 75.0, 0.9), run_at("gradual", 1, 27.0, 60.0, 0.9),
    ]  # fmt: skip
    over = ratios(found)
    assert over.loc["gradual-s90-seed0"].tolist() == [1.5, 1.5, 2.5]  # 24 / 16, 75 / 50, 75 / 30
    assert over.loc["gradual-s90-seed1"].tolist() == [1.5, 1.0, 1.5]  # 27 / 18, 60 / 60, 60 / 40
    assert over.loc["control-s0-seed0"].tolist() == [1.25, 0.6, 1.0]
    (name,) = best_dense.names(frames.frame(found))
    remark = "its learning rate was not swept, so that a better one may exist"
    assert name == f"dense + teacher (10 steps; {remark})"


def test_the_mean_over_seeds_chooses_not_the_luckiest_seed():
    found = [
        run_at("control", 0, 20.0), run_at("control", 1, 20.0),
        run_at("control", 0, 10.0, axes={"lr": 2}), run_at("control", 1, 50.0, axes={"lr": 2}),
        run_at("gradual", 0, 40.0, 40.0, 0.9),
    ]  # fmt: skip
    assert ratios(found).ratio["gradual-s90-seed0"] == 2.0  # sqrt(10 * 50) > 20


def dense_at(seed, perplexity, steps=10):
    """The fine-tuned model, from which all others go on."""
    found = run_at("dense", seed, perplexity, perplexity, steps=steps)
    found["parameters"]["init_from"] = ""
    return found


def test_a_run_is_compared_with_the_dense_models_of_its_length():
    found = [
        dense_at(0, 50.0),
        run_at("control", 0, 40.0, axes={"steps": 10}, steps=10),
        run_at("control", 0, 20.0, axes={"steps": 100}, steps=100),
        run_at("control", 0, 16.0, axes={"steps": 100, "lr": 0.1}, steps=100),
        run_at("gradual", 0, 60.0, 60.0, 0.9, axes={"steps": 10}, steps=10),
        run_at("gradual", 0, 32.0, 32.0, 0.9, axes={"steps": 100}, steps=100),
        run_at("gradual", 1, 32.0, 32.0, 0.9, axes={"steps": 100}, steps=100),
        run_at("one-shot", 0, 90.0, 90.0, 0.9, steps=0),
    ]  # fmt: skip
    over = ratios(found).ratio
    assert over["gradual-steps10-s90-seed0"] == 1.5 and over["gradual-steps100-s90-seed0"] == 2.0
    assert math.isnan(over["gradual-steps100-s90-seed1"])  # nobody trained a dense one at this seed
    assert over["one-shot-s90-seed0"] == 1.8  # of the model that was cut
    _, few, many = best_dense.names(frames.frame(found))
    assert (
        few
        == "dense control (10 steps; in this study no other dense model was trained for as many)"
    )
    assert many == "dense control, learning rate 0.1 (100 steps)"  # of two rates the better


def test_a_dense_model_with_one_learning_rate_only_is_said_to_have_it():
    rates = (0.1, 0.2)
    swept = [run_at("control", 0, 20.0, axes={"lr": rate}) for rate in rates]
    once = [run_at("dense-distilled", 0, 30.0, axes={"lr": 0.1})]
    (name,) = best_dense.names(frames.frame(swept + once))
    assert name == "dense control, learning rate 0.1 (10 steps)"
    (name,) = best_dense.names(frames.frame(swept[:1] + once))
    assert name.endswith("its learning rate was not swept, so that a better one may exist)")


def test_zeros_from_scratch_are_compared_with_as_many_steps_in_all():
    scratch = run_at("retrained", 0, 30.0, 30.0, 0.9, steps=110, axes={"model": "scratch-mask"})
    scratch["parameters"]["init_from"] = ""
    scratch["model"] = scratch["model"] | {"name": "scratch-mask"}
    pretraining = run_at("scratch-mask", 0, 99.0, 99.0, 0.9, notebook="00_pretraining")
    lengths = ((10, 40.0), (100, 20.0))
    found = [run_at("control", 0, ppl, axes={"steps": n}, steps=n) for n, ppl in lengths]
    over = ratios([dense_at(0, 50.0), *found, scratch, pretraining]).ratio
    assert over["retrained-modelscratch-mask-s90-seed0"] == 1.5  # 10 + 100 steps


def test_one_number_of_steps_is_everyone_s():
    found = [dense_at(0, 50.0, 7), run_at("control", 0, 20.0)]
    found += [run_at("one-shot", 0, 90.0, 90.0, 0.9, steps=0)]
    over = ratios(found).ratio
    assert over["dense-s0-seed0"] == 2.5 and over["one-shot-s90-seed0"] == 4.5


def test_a_longer_training_that_made_it_worse_is_said():
    lengths = ((10, 20.0), (20, 30.0))
    found = [run_at("control", 0, ppl, axes={"steps": n}, steps=n) for n, ppl in lengths]
    _, last = best_dense.names(frames.frame(found))
    assert last.endswith("as many; a dense model of fewer steps is better)")


@pytest.mark.parametrize(
    "gone",
    [
        {"sparsity": {"requested": 0.0, "prunable": 0.2, "model": 0.1}},
        {"removed_share": 0.2},
        {"parameters": {"block_sparsity": 0.5, "init_from": "dense", "batch": 8}},
        {"model": {"name": "tiny", "parameters": 7, "prunable": 6}},
    ],
)
def test_a_model_of_which_something_is_gone_is_no_dense_one(gone):
    found = [run_at("control", 0, 20.0), run_at("mine", 0, 10.0, **gone)]
    assert ratios(found).ratio["mine-s0-seed0"] == 0.5


def test_each_base_model_has_its_own():
    other = {"model": {"name": "other", "parameters": 90, "prunable": 80}}
    found = [run_at("control", 0, 20.0), run_at("control", 0, 5.0, axes={"lr": 1}, **other)]
    found += [run_at("gradual", 0, 30.0, 30.0, 0.9)]
    assert ratios(found).ratio["gradual-s90-seed0"] == 1.5
    (name,) = best_dense.names(frames.frame(found))  # of the other nothing was compared
    assert name.startswith("dense control (tiny, 10 steps")


def with_windows(run, losses):
    window = math.ceil(run["metrics"]["test"]["tokens"] / len(losses))
    protocol = run["protocol"] | {"block_size": window + 1}
    return run | {"protocol": protocol, "nll_by_window": {"validation": [0.0], "test": losses}}


def paired(apart=0.0):
    """Two seeds whose differences to the dense model, averaged, are 0.1 nats in every window.

    Of the whole text their differences are 0.1 + `apart` and 0.1 - `apart`.
    """
    dense, noise = [2.0, 3.0] * 8, [apart + 0.05, apart - 0.05] * 8
    found = [with_windows(run_at("control", seed, 20.0, 20.0), dense) for seed in (0, 1)]
    for seed, sign in ((0, 1), (1, -1)):
        losses = [loss + 0.1 + sign * extra for loss, extra in zip(dense, noise, strict=True)]
        test = 20 * math.exp(0.1 + sign * apart)
        found += [with_windows(run_at("gradual-distilled", seed, 25.0, test, 0.9), losses)]
    return found


def test_the_interval_is_of_the_difference_averaged_over_seeds():
    found = paired()
    (interval,) = best_dense.intervals(frames.frame(found)).values()
    assert interval == pytest.approx((math.exp(0.1), math.exp(0.1)))
    low, high = next(iter(best_dense.intervals(frames.frame([found[0], found[2]])).values()))
    assert low < math.exp(0.1) < high  # one seed leaves its noise in
    assert math.exp(0.05) <= low and high <= math.exp(0.15)


def test_the_interval_is_of_other_seeds_too():
    (interval,) = best_dense.intervals(frames.frame(paired(apart=0.01))).values()
    half = 12.706204736 * 0.01  # t s / sqrt 2, where s is 0.01 sqrt 2; the text adds nothing
    assert interval == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)))
    table = frames.frame(paired(apart=0.01))
    table["windows"] = [
        {"test": [loss + 0.02 * (k < 8) * (share > 0) for k, loss in enumerate(each["test"])]}
        for each, share in zip(table.windows, table.requested, strict=True)
    ]
    ((low, high),) = best_dense.intervals(table).values()
    assert math.log(high / low) / 2 == pytest.approx(math.hypot(half, 0.005), rel=1e-3)


def test_records_without_windows_have_no_interval_and_no_column():
    pruned = with_windows(run_at("gradual", 0, 30.0, 30.0, 0.9), [1.0])
    table = frames.frame([run_at("control", protocol=pruned["protocol"]), pruned])
    assert table.ratio.notna().all()
    assert best_dense.intervals(table) == {} and "95 % interval (test)" not in tables.headings(
        table
    )
    assert "95 % interval (test)" in tables.headings(frames.frame(paired()))
    assert "| 22.10 ± <0.01 | 1.11 | 1.11 to 1.11 | 25.00" in tables.markdown(
        frames.frame(paired()), "x"
    )


def test_the_table_begins_with_the_test_text_and_one_seed_has_no_spread():
    found = [run_at("control", 0, 20.0, 40.0), run_at("gradual", 0, 30.0, 50.0, 0.9)]
    text = tables.markdown(frames.frame(found), "x")
    titles = ("test", "x best dense (test)", "validation", "x best dense (validation)")
    assert tables.headings(frames.frame(found)) == ("model", "sparsity", *titles, "records")
    assert "| gradual | 90 % | 50.00 | 1.25 | 30.00 | 1.50 | [0]" in text
    assert "±" not in text.split("\n\n")[0]
    assert "test text (900 tokens)" in text and "chose checkpoints" in text


def test_groups_of_columns_can_be_switched_on():
    asked = {"lr": 0.001, "lr_scaling": 0.5}
    assert peak_lr(asked | {"sparsity": 0.75}) == 0.002 and peak_lr(asked) == 0.001
    found = [
        run_at("control"),
        run_at("dense-distilled", 0, 16.0, 16.0),
        run_at("gradual", 0, 30.0, 24.0, 0.75),
    ]
    found[2]["training"] |= {"best_step": 8}
    for run, value in zip(found[1:], (5.0, 15.0), strict=True):
        run["also_scored"] = {"wikitext": {"metrics": scored(value), "sha256": "ab"}}
    found[2]["fidelity"] = {
        "reference": "control", "tokens": 9, "kl": 0.25, "same_top": 0.5, "flips_to_wrong": 0.125,
        "flips_to_right": 0.1, "ece": 0.02, "reference_ece": 0.01,
    }  # fmt: skip
    table = frames.frame(found)
    line = {
        group: list(tables.rows(table, lambda run, seed: "", [group]))[-1][6:-1]
        for group in tables.GROUPS
    }
    assert line["control"] == ("1.20", "1.50") and line["training"] == ("0.004", "8 of 10")
    assert line["fidelity"] == ("0.250", "50.0 %", "12.5 %", "10.0 %", "2.0 %", "1.0 %")
    assert line["texts"] == ("15.00", "3.00")
    found[1]["also_scored"]["wikitext"]["sha256"] = "cd"  # another text of that name
    assert frames.frame(found).text_ratios.tolist()[-1] == {}
    found[2]["parameters"]["also_score"] = "wikitext lambada"
    table = frames.frame(found)
    first, *_, last = tables.rows(table, lambda run, seed: "", ["texts"])
    assert last[6:-1] == ("15.00", "", "needs lambada", "")  # of those that asked for it
    assert first[-3] == ""
    assert set(tables.headings(frames.frame(found[:1]), tables.GROUPS)).isdisjoint(
        {"wikitext", "KL divergence, nats a token"}
    )


def test_the_answer_says_how_sure_it_is():
    found = paired()
    protocol = found[0]["protocol"]
    found += [run_at("gradual", seed, 30.0, 30.0, 0.9, protocol=protocol) for seed in (0, 1)]
    text = tables.answer(frames.frame(found))
    line = "a teacher 1.11 ± <0.01 x the test perplexity of the dense control"
    assert f"{line} (95 % interval 1.11 to 1.11), without one 1.50 ± <0.01 x; 2 seeds." in text
    assert "chosen on the validation text: dense control (10 steps; in this" in text
    brief = tables.verdict(frames.frame(found))
    assert "1.11 x the test perplexity of the dense control (1.11 to 1.11), without one" in brief
    assert brief.endswith("1.50 x (2 seeds, 95 % intervals).")  # of the other nobody knows windows
    one = tables.answer(frames.frame([run for run in found if run["seed"] == 0]))
    assert "without one 1.50 x; one seed." in one


def test_what_a_text_tells_apart_falls_with_the_root_of_its_tokens():
    found = [run_at("control"), run_at("gradual-distilled", 0, 30.0, 30.0, 0.9)]
    found[1]["nll_gain_over_baseline"] = {"mean": 0.1, "low": 0.09, "high": 0.11}
    for run in found:
        run["metrics"]["test"]["tokens"] = 3600  # four times those of the validation text
    assert best_dense.told_apart(frames.frame(found)) == pytest.approx(0.005)
    test, validation, *_ = tables.notes(frames.frame(found))
    assert "less than about 0.5 %" in test and "less than about 1.0 %" in validation
    assert best_dense.told_apart(frames.frame(paired())) == pytest.approx(0)
    assert "apart" not in tables.notes(frames.frame(found[:1]))[0]  # nothing known of it


def test_the_report_offers_only_the_columns_that_it_has():
    headings, rows = parts.table_rows(frames.frame(paired()))
    assert parts.switches(headings) == {key: tables.GROUPS[key] for key in ("control", "training")}
    (cells, links), *_ = rows
    assert [group for *_, group in cells] == [group for _, group in headings]
    assert [text for *_, text in links] == ["20.00", "20.00"]


def test_the_page_of_a_record_leaves_the_losses_of_windows_to_the_file():
    found = with_windows(run_at("control", 0, 20.0, 20.0), [2.125, 3.0])
    found["fidelity"] = {"reference": "control", "kl": 0.25}
    values = parts.record_values(found, False)
    text = pages.render("record.html", study="odd", title="", root="", page="", **values)
    assert "fidelity" in text and "0.25" in text and "2.125" not in text


def test_where_rates_were_swept_each_arm_stands_at_its_own():
    found = [run_at("control", 0, 20.0, 20.0)]
    found += [
        run_at(recipe, 0, ppl, ppl, 0.5, axes={"lr": lr})
        for recipe, lr, ppl in (
            ("gradual-distilled", 1, 25.0), ("gradual-distilled", 2, 24.0),
            ("gradual", 1, 30.0), ("gradual", 2, 40.0),
        )
    ]  # fmt: skip
    text = tables.answer(frames.frame(found))
    line = "with a teacher 1.20 x the test perplexity of the dense control"
    assert f"{line}, without one 1.50 x; one seed." in text
    small = [
        run_at("narrow", 0, ppl, ppl, axes={"neuron_sparsity": share}, neuron_sparsity=share,
               removed_share=share, model={"name": "tiny", "parameters": size, "prunable": 8})
        for share, ppl, size in ((0.5, 28.0, 5), (0.25, 21.0, 8))
    ]  # fmt: skip
    text = tables.answer(frames.frame([*found, *small]))
    theirs = "the best small dense model tried of at most as many bytes (fewer neurons, 91 % of them) 1.40 x"
    assert f"{theirs}; one seed." in text
    table = frames.frame([*found, *small])
    assert theirs in tables.verdict(table)
    titles, _, row = tables.short(table).splitlines()
    assert "without one | best small dense model tried of at most as many bytes" in titles
    assert row.count("|") == titles.count("|") and "28.00 | 20.00 |" in row
