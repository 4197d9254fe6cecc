"""Committed notebooks are executed and clean; every notebook runs; wrong input is one line."""

import ast
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from tempfile import gettempdir

import pytest
from conftest import ONE_THREAD, ROOT, papermill, small_text, tiny_gpt2
from tokenizers import normalizers

from prunegpt_utils import masks, modeling
from prunegpt_utils.report import html, tables
from prunegpt_utils.runs import expansion, records, validation

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BIN = Path(sys.executable).parent


def code_cells(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_was_executed_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        # a parameter takes a line, and all of them one cell
        most = 32 if "parameters" in cell["metadata"].get("tags", []) else 25
        assert len("".join(cell["source"]).splitlines()) <= most
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_names_no_place_of_its_machine(path):
    text = path.read_text("utf-8")
    for place in (
        "/home/",
        "/Users/",
        "site-packages",
        f"{ROOT}/",
        f"{Path.home()}/",
        f"{gettempdir()}/",
    ):
        assert place not in text
    assert "papermill" not in json.loads(text)["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_typed_literals_with_help(path):
    (cell,) = [
        cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])
    ]
    for line in "".join(cell["source"]).splitlines():
        assert re.fullmatch(r'\w+: (str|int|float|bool) = ("[^"]*"|[\w.]+)  # [^=]+', line), line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_assertion_carries_a_sentence(path):
    """It is all that a reader sees of it in the log of a study."""
    for cell in code_cells(path):
        source = "".join(cell["source"]).replace("%matplotlib", "#")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert):
                assert node.msg is not None, ast.unparse(node)
            elif "assert_close" in ast.unparse(getattr(node, "func", ast.Pass())):
                assert any(word.arg == "msg" for word in node.keywords), ast.unparse(node)


WRITING = [path for path in NOTEBOOKS if "records.write(" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", WRITING, ids=lambda path: path.stem)
def test_a_record_states_the_parameters_that_were_used(path):
    """A loop variable named like a parameter would change the run and not its record."""
    (cell,) = [cell for cell in code_cells(path) if "records.write(" in "".join(cell["source"])]
    before, _ = "".join(cell["source"]).split("records.write(")
    assert "assert parameters.read(globals()) == p" in before


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke study, run as `make study` runs it, and once more."""
    runs = tmp_path_factory.mktemp("smoke")
    environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(runs)}
    command = [
        BIN / "snakemake", "--snakefile", ROOT / "studies" / "Snakefile", "--directory",
        runs / "smoke", "--config", "study=smoke", "--cores", "2", "--quiet", "all",
    ]  # fmt: skip
    (runs / "smoke").mkdir()
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    return runs / "smoke", outputs


def test_smoke_study_runs_every_notebook_once(smoke):
    folder, (first, second) = smoke
    plan = expansion.plan("smoke")
    assert {path.stem for path in (folder / "records").glob("*.json")} == set(plan)
    assert {run.notebook for run in plan.values()} == {
        "01_baselines",
        "02_pruning",
        "03_distillation",
        "04_size_and_speed",
        "06_criteria",
        "09_structured",
    }
    assert all(name in first for name in plan) and not any(name in second for name in plan)


def test_smoke_records_hold_what_the_design_asks(smoke):
    folder, _ = smoke
    for path in (folder / "records").glob("*.json"):
        record = records.read(path)
        assert {"study", "run", "recipe", "notebook", "seed", "parameters", "model", "data", "sparsity",
                "metrics", "protocol", "training", "environment", "started", "seconds"} <= set(record)  # fmt: skip
        assert len(record["data"]["sha256"]) == 64
        for split in ("validation", "test"):
            assert {
                "nll",
                "tokens",
                "words",
                "bytes",
                "perplexity",
                "word_perplexity",
                "bits_per_byte",
            } <= set(record["metrics"][split])
        requested = record["sparsity"]["requested"]
        assert record["sparsity"]["prunable"] == pytest.approx(requested, abs=1e-3)


def test_smoke_records_say_what_is_left_of_the_control_and_on_another_text(smoke):
    folder, _ = smoke
    for name, run in expansion.plan("smoke").items():
        if run.notebook not in ("01_baselines", "02_pruning", "03_distillation", "09_structured"):
            continue
        record = records.read(folder / "records" / f"{name}.json")
        assert not list(validation._measurement_problems(record)), name
        windows = {split: len(losses) for split, losses in record["nll_by_window"].items()}
        scored = {split: found["tokens"] for split, found in record["metrics"].items()}
        assert windows == {split: -(-tokens // 63) for split, tokens in scored.items()}
        also = record["also_scored"]["pydocs-small"]
        assert also["metrics"]["tokens"] == 484  # 500 in windows of 32, whose first goes unscored
        fidelity = record["fidelity"]
        if run.notebook == "01_baselines":
            assert fidelity is None
        else:
            assert fidelity["reference"] == "control-seed0" and fidelity["kl"] > 0
            assert fidelity["tokens"] == scored["validation"]


def test_smoke_models_are_stock_checkpoints(smoke):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prunegpt_utils.masks import measure_sparsity

    folder = smoke[0] / "models" / "gradual-distilled-s90-seed0"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).vocab_size == model.config.vocab_size
    assert measure_sparsity(model)["prunable"] == pytest.approx(0.9, abs=1e-3)


def test_smoke_report_is_self_contained(smoke, monkeypatch):
    folder, _ = smoke
    monkeypatch.setenv("PRUNEGPT_RUNS", str(folder.parent))
    index = html.build("smoke")
    pages = list(index.parent.glob("*.html"))
    assert len(pages) == 2 + len(expansion.plan("smoke"))  # the index, its notebook
    for page in pages:
        text = page.read_text("utf-8")
        # the style of all pages is one file beside them
        alone = text.replace('<link rel="stylesheet" href="report.css">', "", 1)
        assert not re.search(
            r"<(iframe|script )|(src|srcset)=\"(?!data:)|<link [^>]*href=\"(?!data:)|@import|url\(",
            alone,
        ), page.name
        for target in re.findall(r'href="([^"#]+)"', text):
            # a link that a reader may follow; nothing that the page itself asks for
            assert target.startswith(("https://", "data:")) or (index.parent / target).exists(), (
                target
            )
        assert "Traceback" not in text and str(folder) not in text
    assert tables.number(60.861) == "60.86"


def test_two_runs_at_one_seed_give_the_same_record(smoke, tmp_path):
    """Another folder, another process: everything but the clock is equal."""
    first = records.read(smoke[0] / "records" / "dense-seed0.json")
    again = papermill("01_baselines", tmp_path, expansion.plan("smoke")["dense-seed0"].parameters)
    assert again.returncode == 0, again.stderr
    second = records.read(tmp_path / "smoke" / "records" / "dense-seed0.json")
    for record in (first, second):
        for clock in ("started", "seconds", "checksum"):
            record.pop(clock)
        record["training"].pop("seconds")
    assert first == second


def test_a_notebook_alone_makes_what_it_needs(tmp_path):
    """Notebook 02 in an empty folder and from another working directory."""
    parameters = {"study": "smoke", "data": "pydocs-small", "steps": 2, "sparsity": 0.3}
    parameters |= {"batch": 2, "block_size": 64}
    done = papermill("02_pruning", tmp_path, parameters)
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in (tmp_path / "smoke" / "records").glob("*.json")}
    assert names == {"dense-seed0", "control-seed0", "one-shot-s90-seed0", "gradual-s30-seed0"}


def test_pretraining_notebook_runs(tmp_path):
    small = {"packages": "seaborn papermill", "steps": 3, "batch": 2, "block_size": 32}
    done = papermill("00_pretraining", tmp_path, small)
    assert done.returncode == 0, done.stderr
    record = records.read(tmp_path / "pretraining" / "records" / "pretraining-seed0.json")
    assert record["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("notebook", "parameters", "message"),
    [
        ("02_pruning", {"sparsity": 90.0}, "sparsity: 90.0 must lie in [0, 1), such as 0.9 for 90 %"),
        ("02_pruning", {"sparsty": 0.5}, "sparsty: 0.5 is no parameter of this notebook; did you mean 'sparsity'?"),
        ("01_baselines", {"data": "no-such-text"}, "data: 'no-such-text' must be pydocs, a file or folder"),
        ("01_baselines", {"init_from": "", "model": "no/such"}, "model: 'no/such' is not on this machine"),
        ("03_distillation", {"init_from": "", "teacher": "", "baseline": "nonsense", "data": "pydocs-small"},
         "baseline: 'nonsense' names no recipe that this study makes"),
        ("01_baselines", {"init_from": "", "block_size": 4096}, "block_size: 4096 is longer than the model's 128 positions"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, notebook, parameters, message):
    done = papermill(notebook, tmp_path, {"study": "wrong"} | parameters)
    assert done.returncode != 0
    last = [line for line in done.stderr.splitlines() if line.strip()][-1]
    assert last.startswith(f"ParameterError: {message}"), done.stderr
    assert not list(tmp_path.rglob("*.json")) or not list(
        (tmp_path / "wrong" / "records").glob("*")
    )


def odd_model(folder, kind):
    """A model of a kind that a reader may bring, with a tokenizer beside it."""
    tokenizer = modeling.load_tokenizer("pydocs-base")
    layers = 1 if kind == "one layer" else 2
    base = tiny_gpt2(vocabulary=2048 + 64 * (kind == "padded"), block=64, layers=layers)
    if kind == "zeros":
        masks.prune(base, "magnitude", 0.6, "global")
    if kind == "nfc":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    modeling.save_model(base, tokenizer, folder)
    return str(folder)


ZERO_STEPS = {"init_from": "", "steps": 0, "block_size": 64, "batch": 2}


@pytest.mark.system
@pytest.mark.parametrize(
    ("kind", "notebook", "parameters", "message"),
    [
        ("nfc", "01_baselines", {"recipe": "zero-shot"}, ""),
        ("one layer", "02_pruning", {"one_shot_run": "", "sparsity": 0.0, "steps": 2, "batch": 500}, ""),
        ("padded", "02_pruning", {"one_shot_run": "", "sparsities": "0.5 0 0.9"}, ""),
        ("zeros", "02_pruning", {"one_shot_run": "", "sparsity": 0.3}, ""),
        ("zeros", "06_criteria", {}, "init_from: "),
        ("one layer", "06_criteria", {"sparsities": "0.5", "patterns": ""}, ""),
        ("one layer", "09_structured", {"teacher": "", "neuron_sparsity": 0.7}, ""),
        ("one layer", "09_structured", {"teacher": "", "neuron_sparsity": 0.99}, "neuron_sparsity: "),
    ],
)  # fmt: skip
def test_sound_input_of_any_kind_passes_or_is_refused_in_one_line(
    tmp_path, kind, notebook, parameters, message
):
    text = small_text(tmp_path / "text")
    with (text / "valid.txt").open("a", encoding="utf-8") as file:
        file.write("\n\n" + unicodedata.normalize("NFD", "Le café est fermé."))
    given = ZERO_STEPS | {
        "study": "odd",
        "model": odd_model(tmp_path / "m", kind),
        "data": str(text),
    }
    if notebook != "06_criteria":
        given["reference"] = ""
    else:
        del given["steps"]
    done = papermill(notebook, tmp_path, given | parameters)
    last = ([line for line in done.stderr.splitlines() if line.strip()] or [""])[-1]
    if message:
        assert done.returncode and last.startswith(f"ParameterError: {message}"), done.stderr
        return
    assert done.returncode == 0, done.stderr
    if notebook == "02_pruning":
        (path,) = (tmp_path / "odd" / "records").glob("*.json")
        measured = {point["sparsity"] for point in records.read(path)["one_shot_curve"]}
        asked = parameters.get("sparsities", "0.2 0.4 0.5 0.6 0.7 0.8 0.9 0.95")
        assert measured == {0.0, *map(float, asked.split())}
