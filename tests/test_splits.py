"""Which text is for training: what names say, what is refused, and what is said of it."""

import io
import json
import os
import random
import sys

import pandas as pd
import pytest

from prunegpt_utils import corpora, splits
from prunegpt_utils.errors import ParameterError

TEXTS = {
    split: [f"{split} document {n} says something of its own" for n in range(60)]
    for split in splits.SPLITS
}


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train.txt Train.TXT TRAIN wiki.train.txt train-00000-of-00001.parquet training "
                  "my_corpus_train.jsonl train2017 trainset train_sft wikiTrain.txt train/a.txt trn"),
        ("validation", "val.txt valid Valid.txt validation dev DEV.txt eval evaluation valset dev0 "
                       "wiki.valid.txt validation_matched held-out heldout.txt HeldOut dev.en.txt"),
        ("test", "test.txt Test wiki.test.raw.txt testing tst test-00003-of-00004.parquet test.clean "
                 "newstest/test devtest TestData en/test/part-1.txt tests"),
        (None, "latest.txt contest testament.txt strain trainer.txt devotion interval validated "
               "unsupervised story a README 2024 evaluator medieval invalid.txt"),
        (None, "train_test.txt trainVal train-dev test/train.txt val.test"),
    ],
)  # fmt: skip
def test_what_a_name_says(split, names):
    for name in names.split():
        assert splits.split_of(name) == corpora.split_of(name) == split, name


def write(folder, **files):
    for name, texts in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(texts), "utf-8")
    return str(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "val.txt", "test.txt"),
        ("train.txt", "dev.txt", "test.txt"),
        ("train.txt", "eval.txt", "test.txt"),
        ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
        ("Train.txt", "VALID.TXT", "Test.Txt"),
        ("my_corpus_train.txt", "my_corpus_validation.txt", "my_corpus_testing.txt"),
        ("train/a.txt", "val/latest.txt", "test/deep/b.txt"),
        ("trainset.txt", "DevSet.txt", "tst2013.txt"),
    ],
)
def test_the_usual_names_are_the_splits(tmp_path, capsys, names):
    folder = write(tmp_path / "text", **dict(zip(names, TEXTS.values(), strict=True)))
    assert corpora.load_text(folder, tmp_path / "cache").splits == TEXTS
    pairs = "; ".join(f"{n} -> {split}" for n, split in zip(names, TEXTS, strict=True))
    assert capsys.readouterr().out == f"data: {pairs}\n"


def test_rows_of_tables_with_the_hub_s_file_names(tmp_path):
    for split, texts in TEXTS.items():
        for part in (0, 1):
            table = pd.DataFrame({"text": texts[part * 30 : part * 30 + 30]})
            table.to_parquet(tmp_path / f"{split}-0000{part}-of-00002.parquet")
    assert corpora.load_text(str(tmp_path), tmp_path / "cache").splits == TEXTS


def test_notes_beside_the_text_are_left_out(tmp_path, capsys):
    files = {f"{split}.txt": texts for split, texts in TEXTS.items()}
    notes = {"README.txt": "a", "LICENSE.txt": "b", "licence-de.txt": "c", "numbers.csv": "d"}
    hidden = {"._train.txt": "e", ".trash/train.txt": "f", "train/.cache/g.txt": "g"}
    folder = write(tmp_path, **files, **notes, **hidden)
    assert corpora.load_text(folder, tmp_path / "cache").splits == TEXTS
    left = "left out: LICENSE.txt, README.txt, licence-de.txt and 1 more"
    assert left in capsys.readouterr().out
    assert corpora.load_text(write(tmp_path / "own", **{"readme.txt": TEXTS["train"]}) + "/readme.txt", tmp_path)  # fmt: skip


@pytest.mark.parametrize("missing", [["test"], ["validation"], ["validation", "test"]])
def test_what_is_missing_is_taken_from_the_training_text(tmp_path, capsys, missing):
    given = {f"{s}.txt": TEXTS[s] for s in TEXTS if s not in missing}
    found = corpora.load_text(write(tmp_path, **given), tmp_path / "cache").splits
    assert not set(found["train"]).intersection(*[found[s] for s in splits.SPLITS[1:]])
    assert sorted(sum((found[s] for s in ["train", *missing]), [])) == sorted(TEXTS["train"])  # noqa: RUF017
    assert all(found[s] == TEXTS[s] for s in splits.SPLITS[1:] if s not in missing)
    assert all(found[s] == splits.split_documents(TEXTS["train"])[s] for s in missing)
    assert f"{' and '.join(missing)}: 5% of the training documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("train.txt", "notes.txt"), "some names say one, others none: notes.txt -> no split named; train.txt -> train"),
        (("train.txt", "dev.txt", "test.txt", "more.txt"), "some names say one, others none"),
        (("train_test.txt",), "a name says two: train_test.txt -> train or test"),
        (("train/dev.txt", "train/train.txt", "test.txt"), "a name says two"),
        (("test.txt",), "there is none to train on: test.txt -> test"),
        (("val.txt", "test.txt"), "there is none to train on"),
        (("wikitrain.txt", "wikivalid.txt", "wikitest.txt"), "names may mean them"),
        (("pretrain.txt", "devel.txt"), "names may mean them"),
    ],
)  # fmt: skip
def test_splits_that_are_not_clear_are_refused(tmp_path, capsys, names, why):
    folder = write(tmp_path / "text", **dict.fromkeys(names, TEXTS["train"]))
    with pytest.raises(ParameterError) as error:
        corpora.load_text(folder, tmp_path / "cache")
    message = str(error.value)
    assert message.startswith(f"data: {folder!r} has splits that are not clear, ")
    assert why in message and "\n" not in message and "Name every text after train" in message
    assert not capsys.readouterr().out


def test_without_names_documents_are_split_by_a_hash(tmp_path, capsys):
    names = ("latest.txt", "story.txt", "testament.txt", "d.txt")
    folder = write(tmp_path, **dict(zip(names, [*TEXTS.values(), ["one more"]], strict=True)))
    found = corpora.load_text(folder, tmp_path / "cache").splits
    assert found == splits.split_documents([*["one more"], *sum(TEXTS.values(), [])])  # noqa: RUF017
    said = "data: d.txt, latest.txt, story.txt and 1 more -> no split named; documents are split"
    assert capsys.readouterr().out.startswith(said)


def test_held_out_documents_are_dropped_from_the_training_text(tmp_path, capsys):
    long = [" ".join(f"{text} and goes on from there to its end" for text in TEXTS["test"][:9])]
    files = {"train.txt": TEXTS["train"] + long, "val.txt": TEXTS["validation"], "test.txt": long}
    found = corpora.load_text(write(tmp_path, **files), tmp_path / "cache").splits
    assert found == TEXTS | {"test": long}
    assert "; left out of train: 1 documents that are held out too" in capsys.readouterr().out


@pytest.mark.parametrize("count", [3, 5, 9])
def test_of_a_few_documents_each_split_has_one(tmp_path, count):
    for name in ("train.txt", "story.txt"):
        folder = write(tmp_path / name, **{name: TEXTS["train"][:count]})
        found = corpora.load_text(folder, tmp_path / "cache").splits
        assert all(found.values()) and sum(map(len, found.values())) == count


def test_a_hub_s_splits_are_read_by_the_same_rules():
    hub = {"train": TEXTS["train"], "val": TEXTS["validation"], "test": TEXTS["test"]}
    readers = {name: (lambda texts=texts: list(texts)) for name, texts in hub.items()}
    assert splits.read_splits("me/three", readers) == TEXTS
    del readers["test"]
    found = splits.read_splits("me/two", readers)
    assert found["validation"] == TEXTS["validation"] and found["test"]
    assert not set(found["train"]) & {*found["validation"], *found["test"]}


def test_no_held_out_document_becomes_training_text_whatever_the_names(tmp_path):
    """All mixtures of names: what is read is split as it says, or refused before it is read."""
    generator = random.Random(0)
    names = [
        "train",
        "val",
        "dev",
        "eval",
        "test",
        "notes",
        "Train",
        "wiki.test",
        "a_valid",
        "train_test",
    ]
    loaded = 0
    for number in range(150):
        chosen = generator.sample(names, generator.randint(1, 4))
        kinds = {name: f"{name} {n}" for n, name in enumerate(chosen)}
        readers = {
            f"{name}.txt": (lambda text=text: [f"{text} {n}" for n in range(200)])
            for name, text in kinds.items()
        }
        try:
            found = splits.read_splits(f"folder {number}", readers)
        except ParameterError:
            continue
        loaded += 1
        if any(map(splits.split_of, chosen)):
            assert {splits.split_of(text.split()[0]) for text in found["train"]} == {"train"}
    assert loaded > 10


def test_rows_that_are_no_text_are_named(tmp_path):
    pd.DataFrame({"text": [*TEXTS["train"], None]}).to_parquet(tmp_path / "null.parquet")
    pd.DataFrame({"text": range(60)}).to_parquet(tmp_path / "numbers.parquet")
    pd.DataFrame({"text": [b"bytes"]}).to_parquet(tmp_path / "bytes.parquet")
    lines = [json.dumps({"text": text}) for text in TEXTS["train"]]
    (tmp_path / "null.jsonl").write_text("\n".join([*lines, "", '{"text": null}']))
    (tmp_path / "list.jsonl").write_text('{"text": ["a"]}')
    for name, place in {
        "null.parquet": "row 61 of null.parquet is no text at all",
        "numbers.parquet": "row 1 of numbers.parquet is no text but '0'",
        "bytes.parquet": "row 1 of bytes.parquet is no text but",
        "null.jsonl": "line 62 of null.jsonl is no text at all",
        "list.jsonl": "line 1 of list.jsonl is no text but",
    }.items():
        with pytest.raises(ParameterError) as error:
            corpora.load_text(str(tmp_path / name), tmp_path / "cache")
        message = str(error.value)
        assert message.endswith(place) or f"{place} " in message, message
        assert "\n" not in message


DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deep.jsonl", "must hold UTF-8 text"),
        ("n" * 300, "must be pydocs, a file or folder"),
        ("~nobody-of-this-name/text.txt", "must be pydocs, a file or folder"),
        ("nul\0byte.txt", "must be pydocs, a file or folder"),
    ],
)
def test_odd_files_and_names_are_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.jsonl").write_text(DEEP)
    with pytest.raises(ParameterError, match=message) as error:
        corpora.load_text(name, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "text")

    monkeypatch.setattr(corpora.Path, "iterdir", refuse)
    with pytest.raises(ParameterError, match="cannot be read: .*Permission denied"):
        corpora.load_text(str(tmp_path), tmp_path / "cache")


def test_home_is_expanded_and_names_may_be_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "n" * 240 + ".TXT"
    write(tmp_path, **{name: TEXTS["train"]})
    corpus = corpora.load_text(f"~/{name}", tmp_path / "cache")
    assert corpus.name == "n" * 240 and corpus.splits == splits.split_documents(TEXTS["train"])
    assert len(capsys.readouterr().out) < 200


def test_any_name_of_a_file_can_be_said_in_ascii(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path, **{os.fsdecode(b"caf\xe9 \xe2\x88\x92.txt"): TEXTS["train"]})
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    corpora.load_text(folder, tmp_path / "cache")
    ascii_only.flush()
    assert b"data: caf\\udce9 \\u2212.txt" in ascii_only.buffer.getvalue()


def test_the_folder_one_is_in_has_a_name(tmp_path, monkeypatch):
    write(tmp_path / "letters", **{"story.txt": TEXTS["train"]})
    monkeypatch.chdir(tmp_path / "letters")
    assert corpora.load_text(".", tmp_path).name == "letters"
