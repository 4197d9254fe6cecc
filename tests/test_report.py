"""The report holds what the records say, escaped, with every link leading somewhere."""

import math
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
from conftest import ROOT, measured, scored, tiny_gpt2

from prunegpt_utils import encodings
from prunegpt_utils.masks import measure_sparsity
from prunegpt_utils.modeling import count_parameters, prunable_weights
from prunegpt_utils.report import (
    figure_files,
    frames,
    html,
    methods,
    model_plots,
    pages,
    parts,
    plots,
    samples,
    statistics,
    tables,
)
from prunegpt_utils.runs import records
from prunegpt_utils.runs.expansion import variant_name

HOSTILE = "<script>alert(1)</script>"


def record(recipe, sparsity, seed, perplexity, full=True):
    p = {"study": "trial", "recipe": recipe, "seed": seed, "sparsity": sparsity, "steps": 5}
    p |= {"alpha": 0.67, "temperature": 2.0} if recipe == "gradual-distilled" else {}
    content = measured(perplexity, sparsity)
    content["metrics"]["test"] = scored(perplexity + 2)
    content["training"]["history"] = [
        {"step": step, "nll": 3 - step / 10, "sparsity": sparsity, "loss": 3.0} for step in (1, 5)
    ]
    if full:  # what older records do not hold
        content["sparsity_by_matrix"] = {"transformer.h.0.mlp.c_fc.weight": 100 * sparsity}
        content["sample"] = {
            "written": {f"Return {HOSTILE}": "a & b"},
            "read": [["\n", 1.0], [HOSTILE, 7.5], [" the", 0.1]],
        }
    return records.write(records.open_run("02_pruning", p), **content)


def write_study(runs, notebook="02_pruning"):
    """Records, figures and an executed notebook of a study `trial`, as a run leaves them."""
    found = [
        record("control", 0.0, seed, 20.0 + seed, full=bool(seed)) for seed in (0, 1)
    ] + [
        record(recipe, sparsity, seed, perplexity + seed)
        for recipe, extra in (("gradual", 3.0), ("gradual-distilled", 1.0))
        for sparsity, perplexity in ((0.5, 20.0 + extra), (0.9, 24.0 + extra))
        for seed in (0, 1)
    ]  # fmt: skip
    figure_files.style()
    table, folder = frames.frame(found), runs / "trial" / "figures"
    drawn = plots.perplexity_by_sparsity(table, "Trial")
    figure_files.save(drawn, folder, "perplexity")
    figure_files.save(plots.perplexity_by_cost(frames.costs(found), "bytes"), folder, "bytes")
    books = runs / "trial" / "notebooks"
    books.mkdir()
    shutil.copy(ROOT / "notebooks" / f"{notebook}.ipynb", books / "gradual-s90-seed0.ipynb")
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(index, records) of the trial study's report."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGPT_RUNS", str(runs))
        found = write_study(runs)
        return html.build("trial"), found


def test_the_index_answers_first_and_each_number_leads_to_its_record(built):
    index, found = built
    text = index.read_text("utf-8")
    answer = (
        "90 % of the block weights gone</strong>: with a teacher 1.22 ± 0.01 x the"  # 27.5 / 22.5
    )
    assert 0 < text.index(answer) < text.index("<table")
    for one in found:
        number = tables.number(one["metrics"]["test"]["perplexity"])
        link = f'<a href="records/{one["run"]}.html" title="seed {one["seed"]}">{number}</a>'
        assert link in text
        page = (index.parent / "records" / f"{one['run']}.html").read_text("utf-8")
        assert f'href="{one["run"]}.json"' in page and f"{one['seconds']:.6g}" in page
    assert "<math" in text  # the loss of a student
    table = pd.read_csv(index.parent / "table.csv")
    assert table.perplexity.tolist() == frames.frame(found).perplexity.tolist()


def test_every_link_and_anchor_leads_somewhere_and_nothing_is_loaded(built):
    index, _ = built
    everything = [*index.parent.rglob("*.html"), index.parent.parent.parent / "index.html"]
    assert len(everything) == 1 + 2 + 10  # studies; index, notebook; records
    for page in everything:
        text = page.read_text("utf-8")
        assert not re.search(
            r'(src|srcset)="(?!data:)|<link [^>]*href="(?!data:|(../)?report.css")|@import|url\(',
            text,
        )
        for target in re.findall(r'href="([^"]+)"', text):
            if target.startswith(("data:", "https://")):
                continue
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), (page.name, target)
            assert not anchor or f'id="{anchor}"' in there.read_text("utf-8"), (page.name, target)


def test_what_a_record_holds_is_escaped(built):
    index, _ = built
    for page in (index, index.parent / "records" / "gradual-s90-seed0.html"):
        text = page.read_text("utf-8")
        assert HOSTILE not in text and "&lt;script&gt;alert(1)" in text and "a &amp; b" in text


def test_figures_say_their_numbers_and_lie_beside_as_data(built):
    index, _ = built
    (alt,) = re.findall(r'alt="(Trial[^"]+)"', index.read_text("utf-8"))
    assert "gradual + teacher: 23.50 at 50 % to 27.50 at 90 %" in alt
    assert "best dense model: dense control: 22.50" in alt
    data = pd.read_csv(index.parent / "figures" / "perplexity.csv")
    rows = data[data.series == "gradual + teacher"]
    assert rows.x.tolist() == [0.5, 0.9] and rows.y.tolist() == [23.5, 27.5]


def test_a_failing_build_leaves_the_last_report(built, monkeypatch):
    index, _ = built
    before = index.read_bytes()
    monkeypatch.setenv("PRUNEGPT_RUNS", str(index.parent.parent.parent))
    monkeypatch.setattr(html, "notebook_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        html.build("trial")
    assert index.read_bytes() == before


def test_a_notebook_of_which_a_kill_left_half_has_no_page(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    write_study(tmp_path)
    for name, text in (("control-seed0", ""), ("gradual-s50-seed0", '{"cells": [')):
        (tmp_path / "trial" / "notebooks" / f"{name}.ipynb").write_text(text, "utf-8")
    pages = {path.stem for path in html.build("trial").parent.glob("*.html")}
    assert "gradual-s90-seed0" in pages and not {"control-seed0", "gradual-s50-seed0"} & pages


def test_a_report_does_not_fail_for_another_study(runs_folder):
    write_study(runs_folder)
    index = html.build("trial")
    other = runs_folder / "other" / "report"
    shutil.copytree(index.parent / "records", other / "records")
    (other / "index.html").write_text("of last year", "utf-8")
    (runs_folder / "other" / "study.yaml").write_text(
        "study: other\nnotebooks: {nosuch: }\n", "utf-8"
    )
    html.build("trial")
    assert 'href="other/report/index.html"' in (runs_folder / "index.html").read_text("utf-8")


def test_methods_in_short_name_all_that_runs_of_a_recipe_lost():
    found = records.published("fair")
    values = parts.of_study("fair", found, frames.frame(found), ROOT / "figures" / "fair")
    assert values["base"]["model"]["parameters"] == 1_752_768, "not one that was cut"
    said = str(values["methods"])
    assert (
        "'neuron sparsity': '0.75 to 0.98'" in said and "'block sparsity': '0.33 to 0.67'" in said
    )


def test_a_report_is_made_of_published_records_where_nothing_ran(runs_folder):
    index = html.build("pydocs")
    text = index.read_text("utf-8")
    assert index == runs_folder / "pydocs" / "report" / "index.html"
    published = records.read(ROOT / "results" / "pydocs" / "gradual-distilled-s90-seed0.json")
    assert f"{float(published['metrics']['test']['perplexity']):.2f}" in text
    assert '<a href="05_results.html">05_results</a> reads the records' in text
    total = sum(file.stat().st_size for file in index.parent.rglob("*") if file.is_file())
    assert total < 5e6


def test_equal_data_gives_equal_bytes(tmp_path):
    figure_files.style()
    shares = {"h.0.mlp.c_fc.weight": 12.5, "h.1.mlp.c_fc.weight": 30}
    for folder in ("first", "second"):
        figure = model_plots.layer_profile(shares, "Z")
        figure_files.save(figure, tmp_path / folder, "layers")
    for kind in ("svg", "png", "csv"):
        first, second = (tmp_path / folder / f"layers.{kind}" for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert figure_files.points(figure).y.tolist() == [12.5, 30]
    assert "block 1: 30.00 at mlp.c_fc" in figure_files.description(figure)


def test_a_figure_that_is_left_out_does_not_stay(tmp_path):
    figure, axes = plt.subplots()
    axes.plot([1, 2], label="a line")
    assert figure_files.save(figure, tmp_path, "rates") and len(list(tmp_path.iterdir())) == 3
    assert figure_files.save(None, tmp_path, "rates") is None
    assert not list(tmp_path.iterdir())


def test_bytes_of_a_record_are_those_of_the_encoded_tensors():
    model = tiny_gpt2()
    for weight in prunable_weights(model).values():
        weight.data[torch.rand_like(weight) < 0.7] = 0
    found = {"model": count_parameters(model), "sparsity": measure_sparsity(model)}
    pruned, total = prunable_weights(model), 0
    for name, tensor in encodings.unique_tensors(model).items():
        parts = encodings.bitmask(tensor) if name in pruned else {"values": tensor}
        total += sum(part.nbytes for part in parts.values())
    assert frames.stored_bytes(found) == total
    dense = {"model": count_parameters(tiny_gpt2()), "sparsity": {"prunable": 0.0}}
    assert frames.stored_bytes(dense) == 4 * count_parameters(model)["parameters"]


def test_the_pareto_front_is_what_nothing_beats(built):
    _, found = built
    costs = frames.costs(found).set_index(["recipe", "sparsity"])
    assert costs.time.isna().sum() == 4  # nobody measured one
    assert frames.pareto_front(costs, "bytes").to_dict() == {
        ("control", 0.0): True, ("gradual", 0.5): False, ("gradual", 0.9): False,
        ("gradual-distilled", 0.5): True, ("gradual-distilled", 0.9): True,
    }  # fmt: skip


def test_the_time_of_a_sparsity_lies_between_those_measured():
    shares = [
        ("sparse", 0.5, 1.0),
        ("sparse", 0.9, 0.25),
        ("narrow", 0.33, 0.5),
        ("small", 0.75, 0.2),
    ]
    speed = {"seconds_by_share": [
        {"kind": kind, "removed_share": removed, "use": use, "seconds_dense": 2.0,
         "seconds_other": 2.0 * share}
        for kind, removed, share in shares for use in ("writing", "reading")
    ]}  # fmt: skip
    found = [
        {"notebook": "09_structured" if "narrow" in recipe else "02_pruning", "recipe": recipe,
         "base_recipe": recipe, "axes": {}, "run": f"{recipe}-{removed}", "seed": 0,
         **({"removed_share": removed, "sparsity": {"prunable": 0.0, "model": 0.0}}
            if recipe in ("narrow", "shallow", "small") else
            {"sparsity": {"prunable": removed, "model": removed}}),
         "parameters": {}, "protocol": {"name": "disjoint", "block_size": 128}, "study": "mine",
         "data": {"name": "text", "sha256": "ab" * 32},
         "metrics": {"validation": scored(9), "test": scored(9)},
         "training": {"steps": 1, "tokens": 1, "seconds": 1},
         "model": {"name": "tiny", "parameters": 9, "prunable": 8}}
        for recipe, removed in [("control", 0.0), ("gradual", 0.5), ("gradual", 0.7), ("gradual", 0.95),
                             ("narrow", 0.333), ("shallow", 0.667), ("small", 0.75)]
    ]  # fmt: skip
    speed |= {"notebook": "04_size_and_speed", "run": "size-and-speed"}
    costs = frames.costs([*found, speed]).set_index(["recipe", "sparsity"]).time
    assert costs["control", 0.0] == 1 and costs["narrow", 0.333] == pytest.approx(0.5)
    assert costs["small", 0.0] == pytest.approx(0.2), "nothing of it is gone, but of its size"
    assert costs["gradual", 0.5] == 1 and costs["gradual", 0.7] == pytest.approx(0.5)
    assert math.isnan(costs["gradual", 0.95])
    assert math.isnan(costs["shallow", 0.667]), "nobody measured a model of fewer blocks"


def test_before_and_after_tells_both_ends_of_each_line():
    figure_files.style()
    rows = pd.DataFrame([
        {"level": "50 %", "method": method, "one_shot": cut, "perplexity": kept}
        for method, cut, kept in [("wanda", 40.0, 24.0), ("wanda", 42.0, 25.0),
                                  ("sparsegpt", 30.0, 23.0), ("gradual", math.nan, 22.0)]
    ])  # fmt: skip
    figure = plots.before_and_after(rows, 20.0, "Both")
    drawn = figure_files.points(figure).set_index(["panel", "series", "x"]).y.to_dict()
    assert drawn == {
        ("50 % gone", "dense control", "the end"): 20, ("50 % gone", "SparseGPT", "the cut"): 30,
        ("50 % gone", "SparseGPT", "the end"): 23, ("50 % gone", "Wanda", "the cut"): 41,
        ("50 % gone", "Wanda", "the end"): 24.5, ("50 % gone", "gradual", "the end"): 22,
    }  # fmt: skip
    assert "SparseGPT: 30.00 at the cut to 23.00 at the end" in figure_files.description(figure)


def test_trainings_whose_sparsity_coincides_are_told_apart():
    figure_files.style()
    rows = [{"step": step, "nll": 3.0, "sparsity": 0.9} for step in (1, 2)]
    dense = [row | {"sparsity": 0.0} for row in rows]
    histories = {"a": (dense, "#000000", "D"), "b": (rows, "#0072B2"), "c": (rows, "#E69F00", "s")}
    above, below = model_plots.training_history(histories, "90 %, seed 0").axes
    assert above.get_title(loc="left") == "90 %, seed 0" and below.get_ylim()[0] < 0
    assert [line.get_marker() for line in below.lines] == ["D", "o", "s"]
    first, second = (line.get_linewidth() for line in below.lines[1:])
    assert first > second


def test_changes_colours_what_seeds_can_tell_apart():
    figure_files.style()
    rows = pd.DataFrame([
        {"change": change, "seed": seed, "percent": percent}
        for change, percents in [("worse", (5.0, 5.1, 5.2)), ("unclear", (-2.0, 0.1, 1.0)),
                                 ("better", (-3.0, -3.1, -3.2))]
        for seed, percent in enumerate(percents)
    ])  # fmt: skip
    figure = plots.changes(rows, "One change")
    means = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [line.get_color() for line in means] == ["#0072B2", "#999999", "#D55E00"]  # bottom up
    assert figure_files.points(figure).y.tolist() == rows.percent.tolist()
    assert "better: -3.00 at seed 0 to -3.20 at seed 2" in figure_files.description(figure)


def run_of(base, axes, seed, perplexity, sparsity=0.0):
    recipe, steps = variant_name(base, axes), axes.get("steps", 10)
    return {
        "recipe": recipe, "base_recipe": base, "axes": axes, "run": f"{recipe}-seed{seed}",
        "seed": seed, "notebook": "02_pruning", "parameters": {"init_from": "" if base == "dense" else "dense"},
        "sparsity": {"requested": sparsity, "prunable": sparsity, "model": sparsity},
        "metrics": {"validation": scored(perplexity), "test": scored(perplexity)},
        "model": {"name": "tiny", "parameters": 9, "prunable": 8}, "training": {"steps": steps, "tokens": 8 * steps, "seconds": 1.0},
    }  # fmt: skip


def test_by_steps_takes_runs_whose_length_is_an_axis():
    found = [
        run_of("gradual", {"steps": 100}, 1, 31.0, 0.9), run_of("gradual", {"steps": 100}, 0, 30.0, 0.9),
        run_of("control", {"steps": 10}, 0, 40.0), run_of("control", {"steps": 100}, 0, 20.0),
        run_of("control", {"steps": 100, "lr": 0.1}, 0, 19.0), run_of("dense", {}, 0, 50.0),
        run_of("gradual", {"teacher": "control-steps10", "steps": 100}, 0, 29.0, 0.9),
    ]  # fmt: skip
    assert frames.by_steps(found).iloc[:, :5].values.tolist() == [
        ["control", 0.0, 10, 0, 40.0], ["control", 0.0, 100, 0, 20.0],
        ["gradual", 0.9, 100, 0, 30.0], ["gradual", 0.9, 100, 1, 31.0],
        ["gradual-control-steps10", 0.9, 100, 0, 29.0],
    ]  # fmt: skip
    assert frames.by_steps([]).empty


def test_half_width_is_student_s():
    values = pd.Series([1.0, 2.0, 3.0])  # s = 1, n = 3
    assert statistics.half_width(values) == pytest.approx(4.302652729749464 / 3**0.5)
    assert math.isnan(statistics.half_width(values[:1]))
    assert statistics.half_width(pd.Series([1.0, 2.0, 3.0, math.nan])) == statistics.half_width(
        values
    )
    many = pd.Series(range(100)) / 1.0
    assert statistics.half_width(many) == pytest.approx(1.9842169515864174 * many.sem())


@pytest.mark.parametrize(
    ("values", "text"),
    [  # of three seeds one apart, half of the interval is 4.3027 / sqrt(3) = 2.484
        ((3.0, 4.0, 5.0), "+4.000 ± 2.484"), ((-3.0, -4.0, -5.0, math.nan), "-4.000 ± 2.484"),
        ((1.0, 2.0, 3.0), "(+2.000 ± 2.484)"), ((0.5, math.nan), "+0.500, one seed"), ((math.nan,), ""),
    ],
)  # fmt: skip
def test_a_mean_whose_interval_holds_zero_stands_in_brackets(values, text):
    assert statistics.with_interval(pd.Series(values)) == text


@pytest.mark.parametrize(
    ("base", "axes", "label", "place"),
    [
        ("gradual", {}, "gradual", 1),
        ("gradual", {"criterion": "relative"}, "gradual, relative", 1),
        ("gradual-distilled", {"lr": 0.004}, "gradual + teacher, learning rate 0.004", 2),
        ("gradual-distilled", {"sparsity_start": 0.7}, "gradual + teacher, first cut of 70 %", 2),
        ("gradual-distilled", {"kd_loss": "hidden_mse"}, "gradual + teacher, hidden states", 2),
        (
            "gradual-distilled",
            {"lr": 2, "teacher": "control-steps1200"},
            "gradual + teacher (the control of 1,200 steps), learning rate 2",
            2,
        ),
        (
            "gradual-distilled",
            {"teacher": "zero-shot"},
            "gradual + teacher (the pretrained model)",
            2,
        ),
        ("gradual", {"teacher": "owner/GPT-x.1"}, "gradual, teacher: GPT-x.1", 1),
        ("gradual", {"rounds": 4}, "gradual, 4 rounds of learning-rate rewinding", 1),
        ("gradual", {"steps": 2400, "warmup": 0.1}, "gradual, 2,400 steps, warmup 0.1", 1),
        ("retrained", {}, "one-shot, retrained", 0),
        ("retrained", {"criterion": "wanda", "scope": "2:4"}, "Wanda, retrained, 2:4", 0),
        (
            "retrained",
            {"criterion": "wanda", "lr": 2, "scope": "2:4"},
            "Wanda, retrained, 2:4, learning rate 2",
            0,
        ),
        (
            "gradual-distilled",
            {"lr": 2, "model": "scratch-mask"},
            "the pruned model's zeros from scratch + teacher, learning rate 2",
            2,
        ),
        ("retrained", {"model": "scratch-random"}, "random zeros from scratch", 0),
        ("mine", {}, "mine", 3),
    ],
)
def test_a_variant_is_called_by_its_recipe_and_what_is_changed(base, axes, label, place):
    assert methods.method_label(base, axes) == label
    order = ["retrained", "gradual", "gradual-distilled", "nothing-known"]
    assert sorted([*order, base], key=methods.order).index(base) in (place, place + 1)


@pytest.mark.parametrize(
    ("parameter", "new", "old", "phrase"),
    [
        ("criterion", "magnitude", "fisher", "weights ranked by magnitude instead of Fisher"),
        ("rounds", 4, 0, "4 rounds of learning-rate rewinding"),
        ("regrow_decay", 0.02, 0.0, "removed weights may return (decay 0.02)"),
        (
            "kd_loss",
            "hidden_mse",
            "forward_kl",
            "teacher's hidden states instead of its probabilities",
        ),
        ("kd_loss", "reverse_kl", "forward_kl", "reverse KL instead of forward KL"),
        ("scope", "uniform", "global", "one ranking for each matrix instead of one for all"),
        ("teacher", "dense", "control", "teacher: the fine-tuned model instead of the control"),
        ("prune_until", 0.25, 0.5, "last cut after 25 % of the steps instead of 50 %"),
        ("warmup", 0.1, 0.05, "warmup 0.1 instead of 0.05"),
    ],
)
def test_an_ablation_is_called_by_a_whole_phrase(parameter, new, old, phrase):
    assert methods.change(parameter, new, old) == phrase


def test_what_is_drawn_side_by_side_has_a_mark_and_a_colour_of_its_own():
    drawn = [
        *methods.CRITERIA.values(),
        *(methods.METHODS[name] for name in ("gradual", "gradual-distilled")),
    ]
    _, colours, marks = zip(*drawn, strict=True)
    assert len(set(colours)) == len(set(marks)) == len(drawn)


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_coloured_tokens_can_be_read_in_light_and_dark():
    css = (pages.FOLDER / "report.css").read_text("utf-8")
    inks, papers = (
        [bytes.fromhex(code) for code in re.findall(rf"--{name}: #(\w{{6}})", css)]
        for name in ("ink", "paper")
    )
    strengths = [samples.strength(loss) for loss in (0.1, 1, 2, 4, 6, 9)]
    assert strengths == sorted(strengths) and strengths[0] == 0 and len(set(strengths)) == 6
    assert len(inks) == len(papers) == 2
    for ink, paper in zip(inks, papers, strict=True):
        for alpha in strengths:
            mixed = [alpha * c + (1 - alpha) * p for c, p in zip((208, 60, 0), paper, strict=True)]
            low, high = sorted((luminance(ink), luminance(mixed)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_samples_run_from_dense_to_sparsest(built):
    _, found = built
    names = [one["run"] for one in samples.chosen(found)]
    assert names == ["control-seed1", "gradual-distilled-s50-seed0", "gradual-distilled-s90-seed0"]
    assert samples.chosen([found[0]]) == [] and samples.html([]) == ""


def test_a_notebook_becomes_a_page_without_scripts(tmp_path):
    markdown = "# Title\n$x^2$, [next](02_next.ipynb), [all](../README.md), "
    markdown += "[what is accepted](../docs/mine.md#x), [table](../results/mine/README.md)"
    links = "[s0](../results/mine/a-seed0.json) [s1](../runs/mine/records/a-seed1.json) "
    links += "[s2](../results/other/a-seed0.json)"
    script = nbformat.v4.new_output(
        "display_data", {"text/html": "<script>alert(1)</script><b>x</b>"}
    )
    table = nbformat.v4.new_output("display_data", {"text/markdown": links})
    cells = [
        nbformat.v4.new_markdown_cell(markdown),
        nbformat.v4.new_code_cell("1", outputs=[script, table]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "book.ipynb")
    text = pages.notebook_html(tmp_path / "book.ipynb", {"02_next"}, "mine")
    assert "<script" not in text and "<math" in text and "<b>x</b>" in text
    assert 'href="02_next.html"' in text and 'href="index.html"' in text
    assert "../" not in text and "what is accepted" in text and ", table" in text
    assert '<a href="records/a-seed0.html">s0' in text and '"records/a-seed1.html">s1' in text
    assert text.count("records/") == 2 and "s2" in text  # of another study: its page is not here
