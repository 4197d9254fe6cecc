"""Scored on more than one text: which texts, how much of them, and what records and tables say."""

import math
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ONE_THREAD, ROOT, WIKITEXT, measured, papermill, scored, small_text, tiny_gpt2

from prunegpt_utils import corpora, modeling, other_texts
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import cuts
from prunegpt_utils.runs import parameters, records, schema

ROWS = ["", " = One title = \n", " The first row has seven words. \n", "A second one.\n"]


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with copies of texts, as PRUNEGPT_TEXTS names it."""
    folder = tmp_path / "copies"
    (folder / "raw-v1").mkdir(parents=True)
    for part, rows in enumerate((ROWS[:2], ROWS[2:])):
        pd.DataFrame({"text": rows}).to_parquet(
            folder / "raw-v1" / f"test-0000{part}-of-00002.parquet"
        )
    pd.DataFrame({"text": ["training text"]}).to_parquet(
        folder / "raw-v1" / "train-00000-of-00001.parquet"
    )
    (folder / "raw-v1" / "test.md").write_text("about the test")
    (folder / "notes").mkdir()
    monkeypatch.setenv("PRUNEGPT_TEXTS", str(folder))
    return folder


def test_a_copy_is_found_by_the_last_part_of_the_name(copies, tmp_path):
    text = corpora.load_test("owner/data:raw-v1", tmp_path)
    assert text.splits == {"train": [], "validation": [], "test": ROWS}
    assert text.name == "raw-v1" and text.revision is None
    assert text.text("test") == "\n\n".join(ROWS)
    assert text.sha256 == corpora.load_test("another/one:raw-v1", tmp_path).sha256


def test_without_a_copy_it_is_the_test_split_of_the_text_by_that_name(copies, tmp_path):
    folder = str(small_text(tmp_path / "text"))
    whole = corpora.load_text(folder, tmp_path)
    assert corpora.load_test(folder, tmp_path).splits["test"] == whole.splits["test"]
    with pytest.raises(ParameterError, match="'owner/other' is not on this machine"):
        corpora.load_test("owner/other", tmp_path)
    with pytest.raises(ParameterError, match="'owner/data:notes' has no text in test files"):
        corpora.load_test("owner/data:notes", tmp_path)


def test_the_usual_benchmark_is_all_there(tmp_path, monkeypatch):
    if not WIKITEXT.exists():
        pytest.skip("WikiText is not on this machine")
    monkeypatch.setenv("PRUNEGPT_TEXTS", str(WIKITEXT))
    text = corpora.load_test("Salesforce/wikitext:wikitext-2-raw-v1", tmp_path)
    assert len(text.splits["test"]) == 4358


def test_only_the_first_tokens_are_scored_and_counted(copies, tmp_path):
    tokenizer = modeling.load_tokenizer("pydocs-base")
    names = "owner/data:raw-v1 owner/other"
    texts, missing = other_texts.load_other_texts(names, tokenizer, tmp_path, limit=12)
    assert list(texts) == ["owner/data:raw-v1"] and list(missing) == ["owner/other"]
    assert "is not on this machine" in missing["owner/other"]
    whole, _ = other_texts.load_other_texts("owner/data:raw-v1", tokenizer, tmp_path)
    kept, everything = texts["owner/data:raw-v1"], whole["owner/data:raw-v1"]
    assert torch.equal(kept.ids["test"], everything.ids["test"][:12])
    assert kept.sha256 == everything.sha256  # of the text, not of what was scored of it
    beginning = tokenizer.decode(kept.ids["test"])
    assert "\n\n".join(ROWS).startswith(beginning) and len(beginning) < len("\n\n".join(ROWS))
    sizes = kept.layouts["joined"]["test"]
    assert (sizes.words, sizes.bytes) == (len(beginning.split()), len(beginning.encode()))


def test_scores_are_those_of_disjoint_windows(copies, tmp_path):
    tokenizer, model = modeling.load_tokenizer("pydocs-base"), tiny_gpt2(vocabulary=2048)
    texts, _ = other_texts.load_other_texts("owner/data:raw-v1", tokenizer, tmp_path, limit=20)
    found = other_texts.score_other_texts(model, texts, 8)["owner/data:raw-v1"]
    ids, losses = texts["owner/data:raw-v1"].ids["test"], []
    for window in ids.split(8):
        logits = model(input_ids=window[None, :-1]).logits[0]
        losses += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").tolist()
    assert found["tokens"] == len(losses) == 17
    assert found["nll"] == pytest.approx(sum(losses) / 17, rel=1e-5)


@pytest.mark.parametrize("value", ["/data/text", "a/b/c", "../text", "a b/", "text\\x"])
def test_no_path_is_a_name(value):
    """Records hold the parameters, and no place of a machine."""
    with pytest.raises(
        ParameterError, match="also_score: .* must list texts as pydocs or owner/name"
    ):
        parameters.check("also_score", value)
    assert parameters.check("also_score", "pydocs a/b:c-1 d/e") == "pydocs a/b:c-1 d/e"


def cut(scope, criterion, validation, **also):
    point = {
        "sparsity": 0.5,
        "scope": scope,
        "criterion": criterion,
        "validation": scored(validation),
    }
    return point | ({"also": {name: scored(value) for name, value in also.items()}} if also else {})


def record(seed, *points, model="real", other=10.0, names="other"):
    content = measured(20.0, 0.0) | {
        "seed": seed,
        "one_shot_curve": list(points),
        "parameters": {"also_score": names},
    }
    content["model"] = content["model"] | {"name": model}
    if other:
        content["also_scored"] = {"other": {"sha256": "0", "metrics": scored(other)}}
    return content


def test_rows_are_ratios_to_the_dense_model_on_the_same_text():
    rows = cuts.cuts([record(1, cut("uniform", "magnitude", 60.0, other=40.0))])
    assert rows[["text", "perplexity"]].values.tolist() == [["validation", 60.0], ["other", 40.0]]
    assert rows.nats.map(math.exp).tolist() == pytest.approx([3.0, 4.0])
    table = cuts.ratio_table(rows, (0.5,))
    assert table.loc[("magnitude", "uniform"), ("50 %", "real", "other")] == "4"


def test_a_text_that_was_not_to_be_had_says_what_it_needs():
    dense = cuts.dense_rows([record(0, other=None, names="owner/data:raw-v1")])
    assert dense.text.tolist() == ["validation", "owner/data:raw-v1"]
    assert dense.missing.tolist() == ["", "needs owner/data:raw-v1"]
    assert math.isnan(dense.perplexity[1])


def test_a_gap_stands_beside_its_interval():
    found = [
        record(seed, cut("uniform", "sparsegpt", 30.0 + seed), cut("per-row", "wanda", 40.0 + seed))
        for seed in range(3)
    ]
    found += [
        record(0, cut("uniform", "magnitude", 90.0)),
        record(0, cut("global", "magnitude", 40.5)),
    ]
    claims = [
        ("sparsegpt", "wanda"), ("wanda", "sparsegpt"), ("wanda", "magnitude, uniform"),
        ("wanda", "magnitude, global"), ("magnitude, uniform", "magnitude, global"), ("sparsegpt", "fisher"),
    ]  # fmt: skip
    table = cuts.gaps(cuts.cuts(found), claims, (0.5, "2:4"))
    found = table["real", "validation"].to_dict()
    # ln(40 / 30), ln(41 / 31), ln(42 / 32): mean 0.2797, deviation 0.0079; ln(90 / 40 to 42): 0.7864, 0.0244
    assert found.pop(("SparseGPT before Wanda", "50 %")) == "+0.280 ± 0.020"
    assert found.pop(("Wanda before SparseGPT", "50 %")) == "-0.280 ± 0.020"
    assert found.pop(("Wanda before magnitude (uniform)", "50 %")) == "+0.786 ± 0.061"
    assert found.pop(("Wanda before magnitude (global)", "50 %")) == "(-0.012 ± 0.061)"
    # one value each: no interval
    assert found == {("magnitude (uniform) before magnitude (global)", "50 %"): "-0.799, one seed"}


def test_one_run_of_the_notebook_writes_what_the_tables_read(copies, tmp_path):
    """Two cuts of the embedded model by one criterion; one text is there, one is not."""
    values = {
        "study": "trial", "data": str(small_text(tmp_path / "text")), "block_size": 64, "batch": 2, "sparsities": "0.5",
        "patterns": "2:4", "also_score": "owner/data:raw-v1 owner/other", "also_block_size": 16,
        "criterion": "wanda", "scope": "per-row",
    }  # fmt: skip
    done = papermill("13_one_shot", tmp_path, values)
    assert done.returncode == 0, done.stderr[-2000:]
    path = tmp_path / "trial" / "records" / "cuts-seed0.json"
    found = records.read(path)
    assert not list(schema.problems(found)) and str(copies) not in path.read_text()
    for point in found["one_shot_curve"]:
        kept = point["fidelity"]
        assert kept["kl"] > 0 and kept["same_top"] < 1
        assert kept["tokens"] == point["validation"]["tokens"]
    rows = cuts.cuts([found])
    assert set(zip(rows.scope, rows.text, strict=True)) == {
        (scope, text)
        for scope in ("2:4", "per-row")
        for text in ("validation", "owner/data:raw-v1")
    }
    assert set(cuts.dense_rows([found]).missing) == {"", "needs owner/other"}
    assert (
        "owner/other is left out: data: 'owner/other' is not on this machine"
        in (tmp_path / "out.ipynb").read_text()
    )


def test_a_trained_model_is_scored_on_further_texts_too(copies, tmp_path):
    values = {
        "study": "trial", "recipe": "zero-shot", "data": str(small_text(tmp_path / "text")), "block_size": 64,
        "init_from": "", "steps": 0, "also_score": "owner/data:raw-v1 owner/other", "also_block_size": 8,
        "also_tokens": 20,
    }  # fmt: skip
    done = papermill("01_baselines", tmp_path, values)
    assert done.returncode == 0, done.stderr[-2000:]
    found = records.read(tmp_path / "trial" / "records" / "zero-shot-seed0.json")
    (name,) = found["also_scored"]
    assert name == "owner/data:raw-v1" and found["also_scored"][name]["metrics"]["tokens"] == 17
    line = "owner/other is left out: data: 'owner/other' is not on this machine"
    assert line in (tmp_path / "out.ipynb").read_text()


@pytest.mark.system
def test_the_study_of_cuts_runs_from_its_file_to_its_report(tmp_path):
    environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(tmp_path)}
    command = [
        sys.executable, "-m", "prunegpt_utils", "study", "smollm2-smoke", "0",
        "--profile", "studies/profiles/local", "--cores", "2",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "smollm2-smoke"
    assert len(list((folder / "records").glob("*.json"))) == 3
    assert (folder / "figures" / "perplexity-pydocs-small.png").exists()
    assert (folder / "report" / "index.html").exists()
    text = (folder / "notebooks" / "11_real_model.ipynb").read_text()
    assert "3 records of smollm2-smoke, 3 of the embedded model" in text
