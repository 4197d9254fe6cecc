"""The hub without a network: a cache filled by hand, and what happens without one."""

import shutil
import time

import pandas as pd
import pytest
import torch
import yaml
from conftest import tiny_gpt2

from prunegpt_utils import corpora, hub, modeling, tokenization
from prunegpt_utils.errors import ParameterError

ROWS = [" = A title = \n", "", " The text , of row one . \n", "", " = = Section = = \n", ""]


def snapshot(cache, kind, repository, revision):
    """An empty snapshot folder in the layout of the hub's cache."""
    home = cache / f"{kind}s--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    folder = home / "snapshots" / revision
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def fill_wikitext(cache, revision="a" * 40, rows=ROWS, configuration="wikitext-2-raw-v1"):
    folder = snapshot(cache, "dataset", "Salesforce/wikitext", revision) / configuration
    folder.mkdir()
    for n, split in enumerate(corpora.SPLITS):
        file = folder / f"{split}-00000-of-00001.parquet"
        pd.DataFrame({"text": [*rows, f" Split {n} . \n"]}).to_parquet(file)


def test_a_model_in_the_cache_loads_by_its_id(cache):
    folder = snapshot(cache, "model", "gpt2", "b" * 40)
    tiny_gpt2().to(torch.float16).save_pretrained(folder)
    model = modeling.load_model("gpt2")
    assert model.dtype == torch.float32
    assert modeling.describe("gpt2", "gpt2", model)["revision"] == "b" * 40


def test_the_pinned_revision_is_preferred(cache):
    pinned = hub.REVISIONS["Salesforce/wikitext"]
    fill_wikitext(cache, pinned)
    home = cache / "datasets--Salesforce--wikitext"
    (home / "refs" / "main").write_text("c" * 40)
    shutil.copytree(home / "snapshots" / pinned, home / "snapshots" / ("c" * 40))
    assert hub.fetch("Salesforce/wikitext", "dataset", "data", "wikitext-2-raw-v1").name == pinned


def test_wikitext_in_the_cache(cache, tmp_path):
    fill_wikitext(cache)
    corpus = corpora.load_text("Salesforce/wikitext:wikitext-2-raw-v1", tmp_path / "cache")
    assert corpus.name == "wikitext-wikitext-2-raw-v1" and corpus.revision == "a" * 40
    assert corpus.splits["test"] == [*ROWS, " Split 2 . \n"]  # empty rows count in the protocol
    tokens = tokenization.tokenize(corpus, modeling.load_tokenizer("pydocs-base"), tmp_path)
    assert tokens.summary["revision"] == "a" * 40
    assert tokenization.pages(corpus.splits["test"]) == [
        "".join(r or " \n" for r in corpus.splits["test"])
    ]


def test_another_configuration_is_not_taken_for_the_one_asked(cache, tmp_path):
    fill_wikitext(cache)
    with pytest.raises(ParameterError, match="data: 'Salesforce/wikitext:wikitext-103-raw-v1'"):
        corpora.load_text("Salesforce/wikitext:wikitext-103-raw-v1", tmp_path)


def test_a_data_set_without_a_text_column(cache, tmp_path):
    folder = snapshot(cache, "dataset", "someone/tables", "d" * 40)
    pd.DataFrame({"body": ["a", "b"]}).to_parquet(folder / "train.parquet")
    with pytest.raises(ParameterError, match=r"has no column named text in its train split"):
        corpora.load_text("someone/tables", tmp_path)


def test_a_data_set_with_one_split_is_split_by_document(cache, tmp_path):
    folder = snapshot(cache, "dataset", "someone/stories", "e" * 40)
    pd.DataFrame({"text": [f"Story number {n}." for n in range(200)]}).to_parquet(
        folder / "train.parquet"
    )
    corpus = corpora.load_text("someone/stories", tmp_path)
    assert sum(map(len, corpus.splits.values())) == 200
    assert corpus.splits["validation"] and corpus.splits["test"]


def rows_of_their_own(n, start=0):
    return [
        f"Row {k} is a text that stands in no other split of them all, at length."
        for k in range(start, start + n)
    ]


@pytest.mark.parametrize("held_out", ["val", "Validation", "dev"])
def test_held_out_rows_of_the_hub_stay_held_out(cache, tmp_path, capsys, held_out):
    folder = snapshot(cache, "dataset", "someone/two", "e" * 40)
    parts = {"train": rows_of_their_own(40), held_out: rows_of_their_own(10, 40)}
    files = [{"split": part, "path": f"{part}.parquet"} for part in parts]
    for part, rows in parts.items():
        pd.DataFrame({"text": [*rows, rows_of_their_own(1, 99)[0]]}).to_parquet(
            folder / f"{part}.parquet"
        )
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    splits = corpora.load_text("someone/two", tmp_path).splits
    assert splits["validation"][:10] == parts[held_out]
    assert splits["test"] and set(splits["test"]) < set(parts["train"])
    assert set(splits["train"]) == set(parts["train"]) - set(splits["test"])
    assert "held out too" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [["a text", None], [1, 2]])
def test_rows_of_the_hub_that_are_no_text(cache, tmp_path, rows):
    folder = snapshot(cache, "dataset", "someone/rows", "e" * 40)
    pd.DataFrame({"text": rows}).to_parquet(folder / "train.parquet")
    with pytest.raises(ParameterError, match=r"row \d of its train split is no text"):
        corpora.load_text("someone/rows", tmp_path)


def test_a_cache_with_a_held_out_split_too_few_is_not_taken_for_whole(cache, tmp_path):
    folder = snapshot(cache, "dataset", "someone/half", "e" * 40)
    for split in ("train", "test"):
        pd.DataFrame({"text": rows_of_their_own(9)}).to_parquet(folder / f"{split}.parquet")
    with pytest.raises(ParameterError, match="is not wholly on this machine"):
        corpora.load_text("someone/half", tmp_path)


@pytest.mark.parametrize(
    ("load", "start"),
    [
        (lambda tmp: modeling.load_model("gpt2"), "model: 'gpt2' is not on this machine"),
        (lambda tmp: modeling.load_model("gpt2-xl", "teacher"), "teacher: 'gpt2-xl' is not on"),
        (
            lambda tmp: corpora.load_text("Salesforce/wikitext:wikitext-2-raw-v1", tmp),
            "data: 'Salesforce/wikitext' is not on this machine",
        ),
    ],
)
def test_without_cache_and_network_one_line_says_what_to_do(cache, tmp_path, load, start):
    begin = time.monotonic()
    with pytest.raises(ParameterError) as caught:
        load(tmp_path)
    assert time.monotonic() - begin < 10
    message = str(caught.value)
    assert message.startswith(start) and "\n" not in message
    for way in ("connect to the network", "hf download", "local folder"):
        assert way in message


def test_an_unreachable_hub_is_noticed_within_seconds(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://192.0.2.1:9")  # an address for examples
    begin = time.monotonic()
    with pytest.raises(ParameterError, match="the hub cannot be reached"):
        modeling.load_model("gpt2")
    assert time.monotonic() - begin < 10


def test_weights_that_are_not_finite(tmp_path):
    model = tiny_gpt2()
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=r"not finite: transformer\.h\.0\.mlp\.c_fc\.weight"):
        modeling.load_model(tmp_path)


def test_pickled_weights_are_refused_with_the_reason(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    torch.save(tiny_gpt2().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ParameterError, match="a pickle runs code when it is read"):
        modeling.load_model(tmp_path, "teacher")


def test_a_teacher_larger_than_the_memory(tmp_path, monkeypatch):
    tiny_gpt2().save_pretrained(tmp_path)
    monkeypatch.setattr(modeling, "_free_memory", lambda: 1000)
    with pytest.raises(ParameterError, match=r"teacher: .* needs \d+\.\d GiB in float32"):
        modeling.load_model(tmp_path, "teacher")
