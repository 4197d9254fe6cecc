"""An exported model is a stock checkpoint with a true card, and never takes another's place."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ONE_THREAD, measured, scored, tiny_gpt2
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from prunegpt_utils import __main__ as commands
from prunegpt_utils import masks, modeling, structured
from prunegpt_utils.report import model_card
from prunegpt_utils.runs import records

ALONE = "import sys; sys.modules['prunegpt_utils'] = None  # any import of it would fail\n"


@pytest.fixture
def made(runs_folder):
    """A function that makes a run: its model in place, and its record."""

    def make(model, recipe="gradual", **changes):
        p = {
            "study": "mine", "recipe": recipe, "seed": 3, "sparsity": 0.8, "model": "pydocs-base",
            "data": "/secret/folder/letters", "init_from": "dense",
        }  # fmt: skip
        run = records.open_run("02_pruning", p | changes)
        modeling.save_model(model, modeling.load_tokenizer("pydocs-base"), run.model)
        scores = scored(25.79) | {"nll": 3.25, "tokens": 5000}
        records.write(
            run, metrics={"validation": scores, "test": scores | {"perplexity": "inf"}},
            sparsity={"requested": 0.8, **masks.measure_sparsity(model)},
            model=modeling.describe("pydocs-base", "pydocs-base", model),
            data={"name": "letters", "revision": None, "sha256": 64 * "a", "train_tokens": 9},
            protocol={"name": "disjoint", "block_size": 32, "stride": 32, "joiner": ""},
            training={"steps": 40, "tokens": 2560, "seconds": 1.0},
            sample={"written": {"One <b>": " two\nthree"}, "read": []},
        )  # fmt: skip
        return f"mine/{run.name}"

    return make


@pytest.fixture
def sparse():
    model = tiny_gpt2(vocabulary=2048)
    masks.prune(model, "magnitude", 0.8, "global")
    return model


def test_plain_transformers_generate_from_it(made, sparse, runs_folder, capsys):
    """The card's own code, in a Python that cannot import this project."""
    commands.main(["export", made(sparse)])
    folder = runs_folder / "mine" / "exports" / "gradual-s80-seed3"
    assert capsys.readouterr().out.strip() == str(folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (code,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text("utf-8"), re.S)
    code = code.replace("max_new_tokens=32", "max_new_tokens=5")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code], cwd=folder, env=environment | ONE_THREAD,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Return a list of") and len(done.stdout) > 18
    warned = [line for line in done.stderr.splitlines() if not line.startswith("Loading weights")]
    assert not "".join(warned)


def test_a_batch_of_prompts_works_in_a_pipeline(made, sparse, runs_folder):
    """Each prompt goes on as it does alone, though the batch pads the shorter one."""
    commands.main(["export", made(sparse)])
    folder = runs_folder / "mine" / "exports" / "gradual-s80-seed3"
    assert modeling.load_tokenizer("pydocs-base").pad_token is None
    writer = pipeline("text-generation", model=str(folder), device="cpu")
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    prompts = ["Return a list of all the names in a", "This"]
    batch = writer(prompts, batch_size=2, **options)
    assert batch == [writer(prompt, **options) for prompt in prompts]
    assert len({found[0]["generated_text"] for found in batch} - {""}) == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)  # of its own: the pipeline changes its side
    ids = tokenizer(prompts, return_tensors="pt", padding=True)
    written = writer.model.generate(**ids, max_new_tokens=6, do_sample=False)[:, -6:]
    assert [found[0]["generated_text"] for found in batch] == tokenizer.batch_decode(written)


def test_every_zero_is_in_the_file(made, sparse, runs_folder):
    commands.main(["export", made(sparse)])
    again = AutoModelForCausalLM.from_pretrained(runs_folder / "mine/exports/gradual-s80-seed3")
    assert masks.measure_sparsity(again) == masks.measure_sparsity(sparse)
    assert modeling.fingerprint(again) == modeling.fingerprint(sparse)
    assert again.config.use_cache and again.generation_config.use_cache


def test_the_card_says_what_record_and_file_say(made, sparse, runs_folder):
    commands.main(["export", made(sparse)])
    card = ModelCard.load(runs_folder / "mine/exports/gradual-s80-seed3/README.md")
    found = {
        (result.metric_type, result.dataset_split): result for result in card.data.eval_results
    }
    assert found["perplexity", "validation"].metric_value == 25.79
    assert found["perplexity", "test"].metric_value == "inf"
    measured = masks.measure_sparsity(sparse)
    zeros = [r.metric_value for r in card.data.eval_results if r.metric_type == "sparsity"]
    assert zeros == [measured["prunable"], measured["model"]]
    assert {result.dataset_name for result in found.values()} == {"letters"}
    record = records.read(runs_folder / "mine" / "records" / "gradual-s80-seed3.json")
    for said in (
        "# prunegpt-mine-gradual-s80-seed3\n", "**80.0 % of the weights", "| 25.79 | inf |",
        "under two million parameters", "data: letters", record["environment"]["commit"],
        "40 optimizer steps over 2,560 tokens, from the run `dense`", "One &lt;b&gt;",
    ):  # fmt: skip
        assert said in card.text, said
    assert "/secret" not in str(card) and card.data.license is None


def test_a_narrow_model_says_what_was_removed(made, runs_folder):
    model = structured.prune_structured(
        tiny_gpt2(vocabulary=2048), neuron_sparsity=0.5, importance="magnitude"
    )
    name = made(model, "narrow", sparsity=0.0)
    path = runs_folder / "mine" / "records" / "narrow-seed3.json"
    records.put(path, records.read(path) | {"removed_share": 0.333})
    commands.main(["export", name])
    folder = runs_folder / "mine/exports/narrow-seed3"
    said = "**33.3 % of the weights were removed**, as whole neurons."
    assert said in (folder / "README.md").read_text("utf-8")
    again = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(16)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("p", "said"),
    [
        ({}, "that was small from the start: its transformer blocks have **33.3 % fewer weights**"),
        ({"block_sparsity": 0.33}, "**33.3 % of the weights were removed**, as whole blocks."),
    ],
)
def test_a_small_model_says_how_it_became_small(made, runs_folder, p, said):
    made(tiny_gpt2(vocabulary=2048), "small", sparsity=0.0)
    record = records.read(runs_folder / "mine" / "records" / "small-seed3.json")
    record |= {"notebook": "14_small_dense", "removed_share": 0.333}
    record["parameters"] |= p
    assert said in model_card.model_card(record, tiny_gpt2(vocabulary=2048)).text


def test_fewer_heads_are_refused(made, runs_folder, capsys):
    model = structured.prune_structured(
        tiny_gpt2(vocabulary=2048), head_sparsity=0.5, importance="magnitude"
    )
    with pytest.raises(SystemExit) as left:
        commands.main(["export", made(model, "narrow")])
    assert left.value.code.startswith("error: RUN: 'narrow-s80-seed3' does not load in plain")
    assert "fewer attention heads" in left.value.code and "\n" not in left.value.code
    assert not (runs_folder / "mine" / "exports").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "does not load in plain"),
        (lambda folder: tiny_gpt2(vocabulary=2048).save_pretrained(folder), "its record says 79.99"),
        (lambda folder: folder.rename(folder.with_name("other")), "no model on this machine; other"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_the_run_s_is_refused(made, sparse, runs_folder, spoil, message):
    name = made(sparse)
    spoil(runs_folder / "mine" / "models" / "gradual-s80-seed3")
    with pytest.raises(SystemExit, match=message):
        commands.main(["export", name])
    assert not list(runs_folder.glob("mine/exports/*"))


def test_another_export_is_never_overwritten(made, sparse, tmp_path, capsys):
    first, second, out = made(sparse), made(sparse, "other"), tmp_path / "out"
    commands.main(["export", first, str(out)])
    commands.main(["export", first, str(out)])  # its own, once more
    assert [path.name for path in tmp_path.iterdir()].count("out") == 1
    before = (out / "README.md").read_bytes()
    with pytest.raises(SystemExit, match="OUT: .* holds something else than prunegpt-mine-other"):
        commands.main(["export", second, str(out)])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("# My notes\n")
    with pytest.raises(SystemExit, match="holds something else"):
        commands.main(["export", first, str(tmp_path / "notes")])
    assert (out / "README.md").read_bytes() == before


@pytest.mark.parametrize("name", ["", "mine", "mine/none", "../x/y"])
def test_a_run_that_is_not_there_is_one_line(name):
    with pytest.raises(SystemExit, match=r"^error: (RUN|study): .*"):
        commands.main(["export", name])


def test_metadata_names_what_came_from_the_hub(made, sparse, runs_folder):
    name = made(sparse)
    path = runs_folder / "mine" / "records" / "gradual-s80-seed3.json"
    record = records.read(path)
    record["model"] |= {"name": "gpt2", "revision": "abc"}
    record["parameters"] |= {"model": "gpt2", "data": "Salesforce/wikitext:wikitext-2-raw-v1"}
    record["data"] |= {"name": "wikitext-2-raw-v1", "revision": "def"}
    records.put(path, record)
    commands.main(["export", name])
    data = ModelCard.load(runs_folder / "mine/exports/gradual-s80-seed3/README.md").data
    assert data.base_model == "gpt2" and data.datasets == ["Salesforce/wikitext"]
    assert data.eval_results[0].dataset_type == "Salesforce/wikitext"
    assert data.eval_results[0].dataset_config == "wikitext-2-raw-v1"


def test_a_base_of_notebook_00_can_be_taken_along(runs_folder):
    """Its record has no `model` and no `data`: it made both."""
    p = {"study": "pretraining", "recipe": "pretraining", "seed": 0, "packages": "seaborn"}
    run, base = records.open_run("00_pretraining", p), tiny_gpt2(vocabulary=2048)
    modeling.save_model(base, modeling.load_tokenizer("pydocs-base"), run.model)
    content = measured(12.0, 0.0) | {"sparsity": {"requested": 0.0, **masks.measure_sparsity(base)}}
    content["data"]["name"] = "package-docs"
    records.write(run, **content)
    folder = model_card.export("pretraining", run.name)
    text = (folder / "README.md").read_text("utf-8")
    assert "from random weights" in text and "text is `package-docs`" in text


def test_an_exported_tokenizer_pads_a_batch(made, sparse, runs_folder):
    folder = model_card.export(*made(sparse).split("/"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(["Return a list of", "If"], padding=True, return_tensors="pt")
    assert ids["attention_mask"].sum(1).tolist() == [4, 1]
