import json
import math
from pathlib import Path

import pytest
from conftest import ROOT

from prunegpt_utils import records, report, studies, tables
from prunegpt_utils.parameters import ParameterError

P = {"study": "t", "recipe": "gradual", "seed": 3, "sparsity": 0.9, "steps": 5}


def content(perplexity=20.0):
    scores = {
        split: {"perplexity": perplexity, "nll": math.log(perplexity)}
        for split in ("validation", "test")
    }
    return {
        "metrics": scores, "sparsity": {"prunable": 0.9, "model": 0.6},
        "training": {"tokens": 10, "seconds": 1.0, "steps": 5, "history": []},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "name"),
    [({"sparsity": 0.9}, "gradual-s90-seed3"), ({"sparsity": 0.125}, "gradual-s12.5-seed3"),
     ({"sparsity": 0.0}, "gradual-seed3"), ({"sparsity": 0.29}, "gradual-s29-seed3")],
)  # fmt: skip
def test_names_of_runs(values, name):
    assert records.run_name(P | values) == name


def test_a_record_comes_back_and_names_what_made_it(runs_folder):
    run = records.open_run("02_pruning", P)
    records.write(run, **content())
    (path,) = runs_folder.rglob("*.json")
    record = records.read(path)
    assert path == runs_folder / "t" / "records" / "gradual-s90-seed3.json"
    assert record["parameters"] == P and record["notebook"] == "02_pruning"
    assert {"commit", "dirty", "python", "torch", "transformers", "device", "threads"} <= set(
        record["environment"]
    )
    assert list(record) == sorted(record)


def test_a_record_with_other_parameters_is_never_overwritten():
    records.write(records.open_run("02_pruning", P), **content())
    records.open_run("02_pruning", P)
    with pytest.raises(
        ParameterError, match="steps: 6 differs from 5, which made the record gradual-s90"
    ):
        records.open_run("02_pruning", P | {"steps": 6})


def test_an_unwritable_folder_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path / "file"))
    with pytest.raises(ParameterError, match=r"^results folder: .* cannot be written"):
        records.open_run("02_pruning", P)


def test_infinity_survives_json(runs_folder):
    run = records.open_run("02_pruning", P)
    metrics = {"validation": {"perplexity": math.inf, "nll": 800.0}, "test": {"perplexity": 5.0}}
    records.write(run, **(content() | {"metrics": metrics}))
    (path,) = runs_folder.rglob("*.json")
    assert (
        json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"]["validation"][
            "perplexity"
        ]
        == "inf"
    )
    assert tables.frame([records.read(path)]).perplexity[0] == math.inf


def test_ratio_is_to_the_control_of_the_same_seed():
    found = []
    for seed, control, pruned in ((0, 10.0, 12.0), (1, 20.0, 30.0)):
        for recipe, sparsity, value in (("control", 0.0, control), ("gradual", 0.9, pruned)):
            p = P | {"recipe": recipe, "seed": seed, "sparsity": sparsity}
            row = content(value) | {"sparsity": {"prunable": sparsity, "model": 0.0}}
            found.append(records.write(records.open_run("02_pruning", p), **row))
    means = tables.summary(tables.frame(found)).set_index("recipe")
    assert (
        means.ratio["gradual"] == pytest.approx((1.2 + 1.5) / 2) and means.ratio["control"] == 1.0
    )
    assert means.perplexity["gradual"] == 21.0 and means.seeds["gradual"] == [0, 1]


PUBLISHED = sorted(path.name for path in (ROOT / "results").glob("*") if path.is_dir())


@pytest.mark.parametrize("study", PUBLISHED)
def test_readme_numbers_equal_the_published_records(study):
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"<!-- table:{study} -->" in text
    assert report.with_results(text, study) == text


@pytest.mark.parametrize("study", PUBLISHED)
def test_published_records_are_complete_and_sound(study):
    planned = studies.plan(study)
    files = sorted((ROOT / "results" / study).glob("*.json"))
    assert {file.stem for file in files} == set(planned)
    for file in files:
        text = file.read_text("utf-8")
        record = json.loads(text)
        assert (
            not record["environment"]["dirty"]
            and str(ROOT) not in text
            and str(Path.home()) not in text
        )
        # half a weight of each row of 192, where each row is cut by itself
        rounding = 0.5 / 192 if record["parameters"].get("scope") == "per-row" else 0
        assert record["sparsity"]["prunable"] == pytest.approx(
            record["sparsity"]["requested"], abs=1e-3 + rounding
        )
        for name, value in planned[file.stem].parameters.items():
            assert record["parameters"][name] == value, (file.stem, name)


def test_publish_refuses_a_dirty_tree(monkeypatch):
    monkeypatch.setattr(records, "environment", lambda: {"dirty": True})
    with pytest.raises(ParameterError, match="tree: 'dirty' must be committed"):
        report.publish("smoke")


def test_publish_refuses_an_incomplete_study(monkeypatch):
    monkeypatch.setattr(records, "environment", lambda: {"dirty": False})
    with pytest.raises(
        ParameterError, match="study: 'smoke' is incomplete: zero-shot-seed0, dense-seed0"
    ):
        report.publish("smoke")
