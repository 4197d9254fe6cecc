import json
import math
import re
from pathlib import Path

import pytest
from conftest import ROOT, measured, scored

from prunegpt_utils import __main__ as commands
from prunegpt_utils.distributed import processor_name
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import frames, publish
from prunegpt_utils.runs import expansion, records, validation

P = {"study": "t", "recipe": "gradual", "seed": 3, "sparsity": 0.9, "steps": 5}


@pytest.mark.parametrize(
    ("values", "name"),
    [({"sparsity": 0.9}, "gradual-s90-seed3"), ({"sparsity": 0.125}, "gradual-s12.5-seed3"),
     ({"sparsity": 0.0}, "gradual-seed3"), ({"sparsity": 0.29}, "gradual-s29-seed3")],
)  # fmt: skip
def test_names_of_runs(values, name):
    assert expansion.run_name(P | values) == name


def test_a_record_comes_back_and_names_what_made_it(runs_folder):
    run = records.open_run("02_pruning", P)
    records.write(run, **measured())
    (path,) = runs_folder.rglob("*.json")
    record = records.read(path)
    assert path == runs_folder / "t" / "records" / "gradual-s90-seed3.json"
    assert record["parameters"] == P and record["notebook"] == "02_pruning"
    assert {"commit", "dirty", "python", "torch", "transformers", "device", "processor"} <= set(
        record["environment"]
    )
    assert record["environment"]["processor"].startswith(processor_name().split(",")[0])
    assert list(record) == sorted(record) and "peak_lr" not in record["training"]


def test_a_record_has_the_rate_that_the_optimizer_saw(runs_folder):
    run = records.open_run("02_pruning", P | {"lr": 0.01, "lr_scaling": 0.5, "sparsity": 0.75})
    assert records.write(run, **measured())["training"]["peak_lr"] == pytest.approx(0.02)


def test_a_record_with_other_parameters_is_never_overwritten():
    records.write(records.open_run("02_pruning", P), **measured())
    records.open_run("02_pruning", P)
    with pytest.raises(
        ParameterError, match="steps: 6 differs from 5, which made the record gradual-s90"
    ):
        records.open_run("02_pruning", P | {"steps": 6})


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path / "file"))
    with pytest.raises(ParameterError, match=r"^results folder: .* cannot be written"):
        records.open_run("02_pruning", P)


def test_infinity_survives_json(runs_folder):
    run = records.open_run("02_pruning", P)
    overflown = scored() | {"perplexity": math.inf, "nll": 800.0}
    records.write(run, **measured() | {"metrics": {"validation": overflown, "test": scored(5.0)}})
    (path,) = runs_folder.rglob("*.json")
    assert (
        json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"]["validation"][
            "perplexity"
        ]
        == "inf"
    )
    assert frames.frame([records.read(path)]).perplexity[0] == math.inf


def test_ratio_is_to_the_control_of_the_same_seed():
    found = []
    for seed, control, pruned in ((0, 10.0, 12.0), (1, 20.0, 30.0)):
        for recipe, sparsity, value in (("control", 0.0, control), ("gradual", 0.9, pruned)):
            p = P | {"recipe": recipe, "seed": seed, "sparsity": sparsity}
            run = records.open_run("02_pruning", p)
            found.append(records.write(run, **measured(value, sparsity)))
    means = frames.summary(frames.frame(found)).set_index("recipe")
    assert (
        means.ratio["gradual"] == pytest.approx((1.2 + 1.5) / 2) and means.ratio["control"] == 1.0
    )
    assert means.perplexity["gradual"] == 21.0 and means.seeds["gradual"] == [0, 1]


PUBLISHED = sorted(path.name for path in (ROOT / "results").glob("*") if path.is_dir())
GROWING = {"smollm2"}  # published before all of it is made


def test_readme_numbers_equal_the_published_records():
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.search("<!-- verdict:.+ -->\n.+\n<!-- end", text)
    assert publish.with_results(text) == text


@pytest.mark.parametrize("study", PUBLISHED)
def test_the_page_of_a_study_equals_its_published_records(study):
    page = (ROOT / "results" / study / "README.md").read_text("utf-8")
    assert page == publish.study_page(study) and page.count("](./") >= 1


@pytest.mark.parametrize("study", PUBLISHED)
def test_published_records_are_complete_and_sound(study):
    planned = expansion.plan(study)
    files = sorted((ROOT / "results" / study).glob("*.json"))
    made = {file.stem for file in files}
    assert made == set(planned) or (study in GROWING and made < set(planned) and made)
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
            was = record["parameters"]
            # records of before runs were compared with a dense one have no reference
            assert name in was or name == "reference", (file.stem, name)
            assert was.get(name, value) == value, (file.stem, name)


@pytest.mark.parametrize("study", PUBLISHED)
def test_published_records_know_their_recipe_and_where_they_come_from(study):
    planned = expansion.plan(study)
    for file in sorted((ROOT / "results" / study).glob("*.json")):
        record, spec = records.read(file), planned[file.stem]
        assert record["schema"] == 2
        assert re.fullmatch("[0-9a-f]{64}", record.get("migrated_from") or record["checksum"])
        assert record.get("migrated_from") != record["checksum"] == records.checksum(record)
        assert (record["base_recipe"], record["axes"]) == (spec.base_recipe, spec.axes)
        assert expansion.variant_name(spec.base_recipe, spec.axes) == record["recipe"]


WRONG = [
    ({"luck": 1}, "luck is no part of a record"),
    ({"axes": []}, "axes: [] must be a dict"),
    ({"seconds": "long"}, "seconds: 'long' must be a float"),
    ({"training": {"steps": 5.5, "tokens": 10, "seconds": 1.0}}, "training.steps is 5.5"),
    ({"sparsity": {"requested": 0.9, "prunable": 0.9}}, "sparsity.model is missing"),
    ({"schema": 1}, "has schema 1, which this version does not read"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_no_record_is_not_written(runs_folder, change, message):
    run = records.open_run("02_pruning", P)
    with pytest.raises(ParameterError, match=re.escape(f"{run.name}.json' {message}")) as error:
        records.write(run, **measured() | change)
    assert "\n" not in str(error.value) and not list(runs_folder.rglob("*.json"))


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_no_record_is_not_read(change, message):
    run = records.open_run("02_pruning", P)
    records.put(run.record, records.write(run, **measured()) | change)
    with pytest.raises(ParameterError, match=re.escape(f"{run.name}.json' {message}")) as error:
        records.read(run.record)
    assert "\n" not in str(error.value)


def test_a_record_of_the_first_version_is_one_line(tmp_path):
    run = records.open_run("02_pruning", P)
    records.put(tmp_path / "old.json", records.write(run, **measured()))
    record = records.load(tmp_path / "old.json")
    del record["schema"]
    records.put(tmp_path / "old.json", record)
    with pytest.raises(ParameterError, match="record: 'old.json' has schema 1, which") as error:
        records.read(tmp_path / "old.json")
    assert "\n" not in str(error.value)


def test_a_record_of_a_variant_names_recipe_and_axes():
    spec = expansion.plan("ablations")["gradual-distilled-reverse-s90-seed0"]
    record = records.write(records.open_run(spec.notebook, spec.parameters), **measured())
    assert record["base_recipe"] == "gradual-distilled" and record["axes"] == {
        "kd_loss": "reverse_kl"
    }


def test_a_record_is_of_the_study_as_it_was_when_the_run_began(runs_folder):
    file = runs_folder / "mine" / "study.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("study: mine\nnotebooks: {02_pruning: {gradual: {steps: [5, 6]}}}\n", "utf-8")
    own = {"study": "mine", "recipe": "gradual-steps5", "seed": 0}
    run = records.open_run("02_pruning", P | own)
    file.write_text("notebooks: [", "utf-8")
    record = records.write(run, **measured())
    assert (record["base_recipe"], record["axes"]) == ("gradual", {"steps": 5})


def test_a_machine_without_git_writes_records(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = records.environment()
    assert found["commit"] is None and found["dirty"]


@pytest.mark.parametrize("text", ["no marker", "<!-- short:fair -->\n", "<!-- end short:fair -->"])
def test_a_marker_without_its_end_is_no_old_number(text):
    with pytest.raises(
        ParameterError, match="page: 'short:fair' must have one <!-- short:fair -->"
    ):
        publish.between_markers(text, "short:fair", "new")


def test_publish_refuses_a_dirty_tree(monkeypatch):
    monkeypatch.setattr(records, "environment", lambda: {"dirty": True})
    with pytest.raises(ParameterError, match="tree: 'dirty' must be committed"):
        publish.publish("smoke")


def test_publish_refuses_an_incomplete_study(monkeypatch):
    monkeypatch.setattr(records, "environment", lambda: {"dirty": False})
    with pytest.raises(
        ParameterError, match="study: 'smoke' is incomplete: zero-shot-seed0, dense-seed0"
    ):
        publish.publish("smoke")


@pytest.mark.parametrize("depth", [150, 700, 100_000])
def test_a_record_that_is_nested_too_deeply_is_one_line(depth):
    run = records.open_run("02_pruning", P)
    record = json.dumps(records.write(run, **measured()) | {"sample": "DEEP"})
    run.record.write_text(record.replace('"DEEP"', '{"a": ' + "[" * depth + "]" * depth + "}"))
    try:
        records.read(run.record)
        assert depth < 200
    except ParameterError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500
    problems = list(validation.validate("t"))
    assert problems and all(line.startswith(run.record.name) for line in problems)


def test_a_page_names_the_runs_that_are_not_published(monkeypatch):
    assert "Not published" not in publish.study_page("pydocs")
    planned = expansion.plan("pydocs")
    more = planned | {"more-seed0": planned["dense-seed0"]}
    monkeypatch.setattr(expansion, "plan", lambda study: more)
    assert "\n\nNot published yet: more-seed0.\n\n" in publish.study_page("pydocs")


@pytest.mark.parametrize(
    ("run", "what"),
    [("pydocs/gradual-s90-seed0", "90.0 % zeros"), ("methods/criteria-seed0", "before 52 cuts")],
)
def test_the_line_of_a_run_says_of_what_its_perplexity_is(run, what, capsys):
    """A curve of cuts has that of the model before them, which is not the outcome of a cut."""
    commands.main(["line", str(ROOT / "results" / f"{run}.json")])
    name, found, label, *_ = re.split("  +", capsys.readouterr().out.strip())
    assert name == run.split("/")[1] and found == what
    assert label == "validation perplexity"
