"""Fair controls: what is chosen, told apart and advised, on records whose answers are known."""

import json

import pytest
import yaml
from conftest import ROOT, measured, scored
from test_best_dense import run_at

from prunegpt_utils.report import best_dense, controls, figure_files, frames, plots, tables
from prunegpt_utils.runs import expansion, records, study_files


def four(seed, plain=(20.0, 22.0), taught=(18.0, 16.5)):
    """A dense model at rates 1 and 2, without and with a teacher."""
    pairs = (("control", plain), ("dense-distilled", taught))
    return [
        run_at(recipe, seed, ppl, ppl, axes={"lr": lr})
        for recipe, perplexities in pairs
        for lr, ppl in zip((1, 2), perplexities, strict=True)
    ]


def test_the_sweep_is_of_one_length_and_chosen_on_validation():
    found = [*four(0), run_at("control", 0, 10.0, 10.0, axes={"lr": 1, "steps": 99}, steps=99)]
    found += [run_at("dense-distilled", 0, 9.0, 9.0, axes={"lr": 1, "alpha": 0.5})]
    rows = controls.sweep(frames.frame(found))
    assert sorted(rows.arm) == ["dense + teacher"] * 2 + ["dense control"] * 2
    chosen = best_dense.chosen_on_validation(rows, ["arm"]).set_index("arm")
    assert chosen.lr.to_dict() == {"dense control": 1, "dense + teacher": 2}


def test_teacher_and_rate_are_told_apart():
    found = [
        *four(0),
        *four(1, (20.0, 24.0), (16.0, 18.0)),
        run_at("control", 0, 5, 5, axes={"lr": 3}),
    ]
    square = controls.square(controls.sweep(frames.frame(found)))
    assert list(square.columns.get_level_values(0)) == [1, 1, 2, 2]  # at 3 nobody was taught
    changes = controls.effects(square)
    assert changes["mean"].tolist() == pytest.approx([-15, -25, 15, (-100 / 12 + 12.5) / 2])
    assert changes.half_width.iloc[0] == pytest.approx(12.706204736 * 5)  # s / sqrt 2 = 5
    assert changes.seeds.tolist() == [2] * 4
    assert controls.effects(controls.square(controls.sweep(frames.frame(found)), 0.5)).empty


def test_an_answer_is_held_against_models_that_its_file_names(monkeypatch):
    found = [
        run_at("control", 0, 20.0, 20.0),
        *(run_at(recipe, 0, ppl, ppl, 0.5, axes={"lr": 1})
          for recipe, ppl in (("gradual-distilled", 25.0), ("gradual", 30.0))),
    ]  # fmt: skip
    small = {"name": "tiny", "parameters": 5, "prunable": 4}
    other = [
        run_at("small-distilled", 0, 28.0, 28.0, axes={"model": "narrow", "lr": 1}, model=small),
        run_at("control", 0, 1.0, 1.0),  # the other study's own controls are not this one's
    ]
    wide = [run_at("small", 0, 29.0, 29.0, axes={"model": "wide"}, model=small)]
    monkeypatch.setattr(records, "published", {"other": other, "more": wide}.get)
    files = {"mine": {"pretrained": ["other", "more"]}, "plain": {}}
    empty = {"study": "odd", "notebooks": {}}
    monkeypatch.setattr(study_files, "load_or_empty", lambda study: empty | files.get(study, {}))
    table = frames.frame(found)
    assert controls.answering("plain", found, table) is table
    text = tables.verdict(controls.answering("mine", found, table))
    assert "with a teacher 1.25 x" in text, "the best dense model is another one"
    assert "as many bytes (pretrained small + teacher, 91 % of them) 1.40 x" in text
    names = [each["run"] for each in controls.pretrained_for("mine")]
    assert names == [other[0]["run"], wide[0]["run"]], "without the other study's controls"


def test_models_are_compared_at_the_rate_that_validation_chose():
    found = [
        run_at("control", 0, 20.0, 30.0, axes={"lr": 1}),
        run_at("control", 0, 21.0, 10.0, axes={"lr": 2}),
    ]
    found += [
        run_at("gradual", seed, 25.0, 33.0 + 6 * seed, 0.5, axes={"lr": 1}) for seed in (0, 1)
    ]
    found[0]["training"]["flops"] = {"student": 5, "teacher": 2}
    rows = controls.compared(found, 10).set_index("recipe")
    assert rows.test.to_dict() == {"control": 30.0, "gradual": 36.0}
    assert rows.weights.to_dict() == {"control": 8, "gradual": 4}  # of the 8 that may be pruned
    assert rows.bytes16.to_dict() == {"control": 18, "gradual": 2 * (9 - 4) + 1}
    assert rows.flops.control == 7 and rows.flops.isna().gradual
    assert rows.seeds.gradual == 2 and rows.test_half_width.gradual == pytest.approx(
        12.7062 * 3, 1e-4
    )
    assert set(controls.compared(found).recipe) == {"control", "gradual"}
    assert (
        controls.usual_length(frames.frame(found)) == 10
        and controls.usual_length(frames.frame([])) == 0
    )
    chain = controls.compared(found, 10, {found[0]["run"]: 99.0}).set_index("recipe").flops
    assert chain.control == 99 and chain.isna().gradual


def test_advice_states_what_records_support_and_no_more():
    found = [
        run_at("control", 0, 20.0, 40.0), run_at("dense-distilled", 0, 18.0, 50.0),
        run_at("gradual", 0, 30.0, 60.0, 0.5), run_at("gradual-distilled", 0, 25.0, 75.0, 0.9),
    ]  # fmt: skip
    advice = controls.use_this_if(controls.compared(found, 10))
    assert advice.use["the best text, whatever the size"] == "dense + teacher"
    assert advice.use["the same, and there is no teacher"].startswith("dense control")
    assert advice.use["at most half of the block weights"] == "gradual + teacher, 90 %"
    assert advice["x best dense"]["at most a tenth of the block weights"] == 1.5
    assert "at most half of the block weights, and dense matrices" not in advice.index
    assert "at most half of the bytes, and dense matrices" not in advice.index
    small = run_at("shallow", 0, 28.0, 55.0, model={"name": "tiny", "parameters": 4, "prunable": 3})
    advice = controls.use_this_if(controls.compared([*found, small], 10))
    assert advice.use["at most half of the bytes, and dense matrices"] == "fewer blocks"
    assert advice.use["at most half of the block weights, and dense matrices"] == "fewer blocks"


def test_the_figures_say_their_numbers():
    figure_files.style()
    rows = controls.sweep(frames.frame(four(0)))
    figure = plots.perplexity_by_rate(rows, best_dense.chosen_on_validation(rows, ["arm"]))
    drawn = figure_files.points(figure)
    ringed = drawn[
        (drawn.series == "chosen on the validation text") & (drawn.panel == "The test text")
    ]
    assert sorted(zip(ringed.x, ringed.y, strict=True)) == [(1, 20.0), (2, 16.5)]
    small = {"name": "tiny", "parameters": 5, "prunable": 4}
    taught = run_at("small-distilled", 0, 40.0, 60.0, axes={"model": "tiny"}, model=small)
    costs = controls.compared([run_at("control", 0, 20.0, 30.0), taught], 10)
    figure = plots.perplexity_by_cost(costs, "weights", "test")
    drawn = figure_files.points(figure)
    assert sorted(drawn.y) == [30.0, 30.0, 60.0, 60.0]  # the points and their rings
    named = [text.get_text() for text in figure.axes[0].texts]
    assert named == ["dense"], "what was pretrained small lost no weights"


def test_no_rates_are_drawn_where_none_was_swept(capsys):
    rows = controls.sweep(frames.frame([run_at("control", 0, 20.0, 30.0, axes={"lr": 1})]))
    assert len(rows) == 1
    assert plots.perplexity_by_rate(rows, rows) is None
    assert "no arm has two of them" in capsys.readouterr().out


def test_of_a_model_that_was_pretrained_small_nothing_is_gone():
    small = {"name": "tiny", "parameters": 4, "prunable": 3}
    made = [run_at(recipe, 0, 40.0, 60.0, model=small) | {"removed_share": 0.625}
            for recipe in ("small", "small-distilled", "shallow")]  # fmt: skip
    assert frames.frame(made).set_index("recipe").sparsity.to_dict() == {
        "small": 0, "small-distilled": 0, "shallow": 0.625,
    }  # fmt: skip


def test_models_of_several_sizes_are_no_line():
    small = {"name": "tiny", "parameters": 5, "prunable": 4}
    mine = run_at("dense", 0, 40.0, 60.0, axes={"model": "tiny"}, model=small)
    rows = controls.compared([run_at("dense", 0, 20.0, 30.0), mine])
    assert sorted(rows.label) == ["fine-tuned", "fine-tuned, tiny"]


RATES = [0.0005, 0.002]
RECIPES = {
    "01_baselines": {"dense": {"steps": 400}, "control": {"steps": [1200], "lr": RATES}},
    "02_pruning": {"one-shot": None, "gradual": {"steps": [1200], "lr": RATES, "sparsity": [0.5, 0.9]}},
    "03_distillation": {
        "dense-distilled": {"steps": [1200], "lr": RATES},
        "gradual-distilled": {"steps": [1200], "lr": RATES, "sparsity": [0.5, 0.9]},
    },
    "09_structured": {"narrow-distilled": {"steps": [1200], "neuron_sparsity": 0.75}},
}  # fmt: skip


def fair_study(runs, left_out):
    """Records of a small study of the same kind, without those of some recipes."""
    (runs / "few").mkdir(parents=True)
    content = {"study": "few", "parameters": {"seed": [0, 1]}, "notebooks": RECIPES}
    (runs / "few" / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    for place, spec in enumerate(expansion.plan("few").values()):
        if spec.base_recipe not in left_out:
            found = measured(20.0 + place, spec.parameters.get("sparsity", 0.0))
            found["metrics"]["test"] = scored(30.0 - place / 9)
            found["training"]["steps"] = spec.parameters.get("steps", 0)
            found["training"]["flops"] = {"student": 10**15, "teacher": 10**14}
            records.write(records.open_run(spec.notebook, spec.parameters), **found)


def test_what_is_not_known_of_a_chain_is_not_counted(runs_folder):
    fair_study(runs_folder, ("control",))  # the teacher
    found = records.read_study("few")[0]
    resolve = expansion.resolver(study_files.load("few"))
    cost = controls.whole_cost(found, resolve)
    assert cost["gradual-steps1200-lr0.002-s50-seed0"] > cost["dense-seed0"] == 11 * 10**14
    assert not [run for run in cost if "distilled" in run]
    rows = controls.compared(found, flops=cost).set_index("base_recipe")
    assert rows.flops["gradual-distilled"].isna().all() and rows.flops["gradual"].notna().all()


@pytest.mark.filterwarnings("ignore:.*non-interactive:UserWarning")
@pytest.mark.parametrize(
    ("left_out", "drawn"),
    [
        ((), {"rates", "weights", "bytes16", "time", "compute"}),
        (("control", "gradual"), {"rates", "weights", "bytes16", "time", "compute"}),
        (("control", "gradual", "dense-distilled", "gradual-distilled", "narrow-distilled"),
         {"weights", "bytes16", "time", "compute"}),
    ],
)  # fmt: skip
def test_the_notebook_reads_all_or_part_of_the_study(runs_folder, left_out, drawn):
    fair_study(runs_folder, left_out)
    book = json.loads((ROOT / "notebooks" / "15_fair_controls.ipynb").read_text("utf-8"))
    names: dict = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('study: str = "fair"', 'study: str = "few"')
            exec(compile(source, cell["id"], "exec"), names)
    assert {path.stem for path in (runs_folder / "few").glob("figures/*.png")} == drawn
    assert len(names["changes"]) == (0 if "control" in left_out else 4)
