"""The shared page holds all that it shows, escaped, and asks nobody for anything."""

import base64
import hashlib
import io
import json
import math
import re

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file
from test_report import HOSTILE, record, write_study

from prunegpt_utils.__main__ import main
from prunegpt_utils.report import pages, share
from prunegpt_utils.runs import records


def write_models(runs, found):
    """Checkpoints of the pruned runs, and what newer records hold, as a run leaves them."""
    torch.manual_seed(0)
    dense = torch.rand(200, 150) + 0.1
    for one in found:
        sparsity = one["sparsity"]["prunable"]
        if sparsity:
            folder = runs / "trial" / "models" / one["run"]
            folder.mkdir(parents=True)
            weight = dense * (torch.rand(dense.shape) >= sparsity)
            save_file({"transformer.h.0.mlp.c_fc.weight": weight}, folder / "model.safetensors")
            one["sample"]["read"] = [["\n", 1.0], [HOSTILE, 7.5 + 2 * sparsity], [" the", 0.1]]
            one["sample"]["written"] = {f"Return {HOSTILE}": f"a & b {sparsity}"}
            one["fidelity"] = {
                "reference": "control-seed0", "tokens": 8, "kl": sparsity, "same_top": 0.5,
                "flips_to_wrong": 0.1, "flips_to_right": 0.1, "ece": 0.1, "reference_ece": 0.1,
            }  # fmt: skip
            records.put(runs / "trial" / "records" / f"{one['run']}.json", one)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(page, its text, records) of the trial study."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGPT_RUNS", str(runs))
        found = write_study(runs)
        write_models(runs, found)
        page = share.build("trial")
        return page, page.read_text("utf-8"), found


def data_of(text):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def test_one_file_loads_nothing_and_its_links_lead_somewhere(built):
    page, text, _ = built
    assert [path.name for path in page.parent.iterdir() if path.is_file()] == ["share.html"]
    shown = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r'(src|srcset)="(?!data:)|<link [^>]*href="(?!data:)|@import|url\(', shown)
    for target in re.findall(r'href="([^"]+)"', shown):
        assert target.startswith(("data:", "https://", "#")), target
        assert not target.startswith("#") or f'id="{target[1:]}"' in shown, target
    names = re.findall(r' id="([^"]+)"', shown)
    assert len(names) == len(set(names))


def test_answer_limits_and_every_record_are_inside(built):
    _, text, found = built
    answer = text.index("90 % of the block weights gone</strong>: with a teacher 1.22 ± 0.01 x")
    assert answer < text.index("<dt>2 seeds") < text.index("<dt>Limits") < text.index("<table")
    runs = re.findall(r'<template data-run="([^"]+)">', text)
    assert sorted(runs) == sorted(one["run"] for one in found)
    points = {point["run"]: point for point in data_of(text)["points"]}
    for one in found:
        test = float(one["metrics"]["test"]["perplexity"])
        assert points[one["run"]]["test"] == test
        assert f'<a data-record="{one["run"]}"' in text
        assert f"make rerun RUN=trial/{one['run']}" in text


def test_what_a_record_holds_is_escaped_in_pages_and_in_data(built):
    _, text, _ = built
    assert HOSTILE not in text and "&lt;script&gt;alert(1)" in text
    view = data_of(text)["views"]["gradual"]["90"]
    assert view["read"][1][0] == HOSTILE and f"Return {HOSTILE}" in view["written"]


def test_the_slider_has_what_records_and_checkpoints_hold(built):
    _, text, _ = built
    data = data_of(text)
    assert {name: list(levels) for name, levels in data["views"].items()} == {
        "gradual + teacher": ["50", "90"], "gradual": ["50", "90"],
    }  # fmt: skip
    view = data["views"]["gradual + teacher"]["90"]
    assert view["run"] == "gradual-distilled-s90-seed0"
    assert view["numbers"]["test perplexity"] == "27.00"
    assert "bytes, if packed" in view["numbers"]
    assert math.exp(view["loss"]) == pytest.approx(
        float(view["numbers"]["validation perplexity"]), 1e-3
    )
    assert view["numbers"]["KL divergence, nats a token"] == "0.900"
    assert data["reference"]["run"] == "control-seed1"  # the lowest seed with a sample
    assert view["mask"]["shape"] == [128, 128]
    with Image.open(io.BytesIO(base64.b64decode(view["mask"]["image"].partition(",")[2]))) as image:
        kept = sum(pixel == 0 for pixel in image.getdata()) / 128**2
    assert kept == pytest.approx(0.1, abs=0.02)


def test_a_published_study_says_what_its_records_do_not_hold(runs_folder):
    page = share.build("pydocs")
    text = page.read_text("utf-8")
    data = data_of(text)
    views = [view for levels in data["views"].values() for view in levels.values()]
    assert page == runs_folder / "pydocs" / "share.html" and page.stat().st_size < 5e6
    assert views and not any(view["mask"] for view in views)
    assert "One seed" in text and "make share STUDY=pydocs-full" in text  # and its answer
    assert "with a teacher 1.06 ± &lt;0.01 x" in text
    fair = text.partition("With every learning rate swept")[2].partition("</details>")[0]
    assert "with a teacher 1.02 ± 0.01 x" in fair and "1.17 ± 0.03 x" in fair
    assert "02_pruning: " in text and 'id="notebook-05_results"' in text


def test_notebooks_that_do_not_fit_are_named(built, monkeypatch):
    page, text, _ = built
    monkeypatch.setenv("PRUNEGPT_RUNS", str(page.parent.parent))
    assert 'id="notebook-gradual-s90-seed0"' in text and "Left out" not in text
    monkeypatch.setattr(share, "LIMIT", len(text.encode()) - 10_000)
    shorter = share.build("trial").read_text("utf-8")
    assert len(shorter.encode()) <= share.LIMIT
    assert "Left out, to keep this page small: gradual-s90-seed0." in shorter
    page.write_text(text, "utf-8")


def test_methods_tell_what_acted(built):
    _, text, _ = built
    table = re.search(r'aria-label="What acted in each recipe">(.*?)</table>', text, re.S)[1]
    assert "alpha 0.67, temperature 2" in table and "50 % to 90 %" in table
    (control,) = re.findall(r"<tr><th scope=\"row\">dense control.*?</tr>", table)
    assert "alpha" not in control and "step 0" not in control and ">5<" in control


def test_a_failing_build_leaves_the_last_page(built, monkeypatch):
    page, text, _ = built
    monkeypatch.setenv("PRUNEGPT_RUNS", str(page.parent.parent))
    monkeypatch.setattr(share, "notebook_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        share.build("trial")
    assert page.read_text("utf-8") == text


def test_a_study_without_an_answer_says_so(runs_folder):
    record("control", 0.0, 0, 20.0)
    text = share.build("trial").read_text("utf-8")
    assert "does not hold the runs that answer" in text and data_of(text)["views"] == {}


@pytest.mark.parametrize("damage", ["no study", "no JSON"])
def test_what_is_wrong_is_one_line(runs_folder, capsys, damage):
    if damage == "no JSON":
        (runs_folder / "trial" / "records").mkdir(parents=True)
        (runs_folder / "trial" / "records" / "a.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        main(["share", "trial"])
    assert str(stop.value).startswith("error: ") and "\n" not in str(stop.value)
    assert not (runs_folder / "trial" / "share.html").exists()


def test_the_chart_library_is_the_one_that_was_reviewed():
    script, about = pages.FOLDER / "plot.min.js", pages.FOLDER / "README.md"
    assert hashlib.sha256(script.read_bytes()).hexdigest() in about.read_text("utf-8")
    assert b"</script" not in script.read_bytes()
    licences = (pages.FOLDER / "plot-licences.txt").read_text("utf-8")
    assert "@observablehq/plot 0.6.17" in licences and "Permission to use, copy" in licences
    assert (ROOT / "docs" / "share.md").exists()
