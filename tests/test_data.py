import json
import random

import nbformat
import pandas as pd
import pytest
import torch
from conftest import WIKITEXT
from nbclient import NotebookClient

from prunegpt_utils import corpora, modeling, tokenization
from prunegpt_utils.errors import ParameterError

STORY = [f"Document number {n} says that {n} times {n} is {n * n}." for n in range(300)]


def test_split_is_stable_and_complete():
    splits = corpora.split_documents(STORY)
    assert sorted(text for texts in splits.values() for text in texts) == sorted(STORY)
    assert len(splits["train"]) > 200 and splits["validation"] and splits["test"]
    fewer = corpora.split_documents(STORY[50:] + STORY[100:])  # others go, repeats come
    for split, documents in fewer.items():
        assert set(documents) <= set(splits[split])
        assert len(documents) == len(set(documents))


def test_the_small_text_is_a_tenth_of_each_split(tmp_path):
    whole, small = (corpora.load_text(name, tmp_path).splits for name in ("pydocs", "pydocs-small"))
    assert all(small[split] == whole[split][::10] != [] for split in corpora.SPLITS)


def test_pydocs_splits_share_no_document(tmp_path):
    corpus = corpora.load_text("pydocs", tmp_path)
    sets = [set(corpus.splits[split]) for split in corpora.SPLITS]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert sum(len(text) for text in corpus.splits["train"]) > 1_000_000
    assert "list" in corpus.text("train") and corpora.load_text("pydocs", tmp_path) == corpus


def test_pydocs_is_the_same_text_in_a_notebook(tmp_path):
    """A notebook's kernel has an `input` and a `faulthandler.enable` of its own."""
    code = "from prunegpt_utils import corpora; print(corpora.load_text('pydocs', '.').sha256)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
    said = done.cells[0].outputs[0].text.strip()
    assert said == corpora.load_text("pydocs", tmp_path / "here").sha256


def write(folder, kind):
    if kind == "txt":
        (folder / "story.txt").write_text("\n\n".join(STORY), "utf-8")
    elif kind == "jsonl":
        (folder / "story.jsonl").write_text(
            "\n".join(json.dumps({"text": t}) for t in STORY), "utf-8"
        )
    else:
        pd.DataFrame({"text": STORY}).to_parquet(folder / "story.parquet")
    return folder / f"story.{kind}"


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_file_or_its_folder_of_any_format(tmp_path, kind):
    file = write(tmp_path, kind)
    assert corpora.load_text(str(file), tmp_path / "cache").splits == corpora.split_documents(STORY)
    assert corpora.load_text(str(tmp_path), tmp_path / "cache").splits == corpora.split_documents(
        STORY
    )


def test_wikitext_is_the_same_rows_in_a_text_file(tmp_path):
    rows = [
        "",
        " = One = \n",
        "",
        " a @-@ b . \n",
        " = = Part = = \n",
        "",
        " c \n",
        " = Two = \n",
        " d \n",
    ] * 30
    (tmp_path / "text.txt").write_text("".join(row or " \n" for row in rows), "utf-8")
    pd.DataFrame({"text": rows}).to_parquet(tmp_path / "table.parquet")
    text, table = (
        corpora.load_text(str(tmp_path / name), tmp_path / "cache").splits
        for name in ("text.txt", "table.parquet")
    )
    assert text == table and any(" = One = \n" in rows for rows in text.values())


def test_named_files_are_the_splits(tmp_path):
    for name, text in (("train-0", "a b"), ("train-1", "c"), ("valid", "d"), ("test", "e f")):
        (tmp_path / f"{name}.txt").write_text(text, "utf-8")
    splits = corpora.load_text(str(tmp_path), tmp_path / "cache").splits
    assert splits == {"train": ["a b", "c"], "validation": ["d"], "test": ["e f"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no-such-text", None, "must be pydocs, a file or folder"),
        ("empty.txt", b"", "has no text in its"),
        ("blank.txt", b" \n\n \n", "has no text in its"),
        ("binary.txt", bytes(range(256)), "must hold UTF-8 text"),
        ("nul.txt", b"text\0text", "must hold UTF-8 text"),
        ("broken.jsonl", b'{"text": "a"}\n{"te', "must hold UTF-8 text"),
        ("other.jsonl", b'{"body": "a"}', "must hold UTF-8 text"),
        ("broken.parquet", b"PAR1", "must hold UTF-8 text"),
        ("latin.txt", "dünn".encode("latin-1") * 99, "must hold UTF-8 text"),
        ("utf-16.txt", ("word\n\n" * 99).encode("utf-16"), "must hold UTF-8 text"),
        ("number.jsonl", b'{"text": 5}', "must hold UTF-8 text"),
        ("nothing.jsonl", b'{"text": null}', "must hold UTF-8 text"),
        ("list.jsonl", b'["text"]', "must hold UTF-8 text"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "must hold UTF-8 text"),
        ("line.txt", b"x" * 20_000_000, "has no text in its"),  # one document, however long
        ("line-breaks.txt", b"\r\n" * 1000, "has no text in its"),
        ("picture.png", b"PNG", "must be pydocs, a file or folder"),
        ("../../etc/passwd", None, "must be pydocs, a file or folder"),
    ],
)
def test_wrong_text_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ParameterError, match=message) as caught:
        corpora.load_text(str(tmp_path / name), tmp_path / "cache")
    assert str(caught.value).startswith("data: ") and "\n" not in str(caught.value)


def test_marks_and_line_ends_of_another_system_are_no_text(tmp_path):
    text = "\n\n".join(STORY)
    (tmp_path / "marked.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert corpora.load_text(
        str(tmp_path / "marked.txt"), tmp_path
    ).splits == corpora.split_documents(STORY)
    lines = "\r\n".join(json.dumps({"text": t}) for t in STORY)
    (tmp_path / "marked.jsonl").write_bytes(lines.encode("utf-8-sig"))
    assert corpora.load_text(
        str(tmp_path / "marked.jsonl"), tmp_path
    ).splits == corpora.split_documents(STORY)


SCRIPTS = [
    "שלום עולם",
    "مرحبا بالعالم",
    "👩‍🔬🏳️‍🌈",
    "e\u0301",
    "a\u2028b\x85c",
    "\u202eabc",
    "漢字仮名",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_text_like_any_other(tmp_path, script):
    """Right to left, joined pictures, combining marks, separators that are no line ends."""
    texts = [f"{script} {n}" for n in range(200)]
    lines = "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts)
    (tmp_path / "story.jsonl").write_text(lines, "utf-8")
    corpus = corpora.load_text(str(tmp_path / "story.jsonl"), tmp_path)
    assert corpus.splits == corpora.split_documents(texts)
    tokenizer = modeling.load_tokenizer("pydocs-base")
    tokens = tokenization.tokenize(corpus, tokenizer, tmp_path)
    decoded = tokenizer.decode(tokens.ids["test"], clean_up_tokenization_spaces=False)
    assert decoded == corpus.text("test")


def test_tokens_are_lossless_counted_and_cached(tmp_path, monkeypatch):
    tokenizer = modeling.load_tokenizer("pydocs-base")
    corpus = corpora.corpus_of("story", corpora.split_documents(STORY))
    tokens = tokenization.tokenize(corpus, tokenizer, tmp_path)
    for split in corpora.SPLITS:
        text = corpus.text(split)
        assert tokenizer.decode(tokens.ids[split]) == text
        counts = {
            "tokens": len(tokens.ids[split]),
            "words": len(text.split()),
            "bytes": len(text.encode()),
        }
        assert tokens.counts[split] == counts
    monkeypatch.setattr(tokenization, "_encode", None)  # a second tokenisation would fail
    again = tokenization.tokenize(corpus, tokenizer, tmp_path)
    assert all(torch.equal(tokens.ids[split], again.ids[split]) for split in corpora.SPLITS)


def test_windows_predict_every_token_once(ids):
    rows = tokenization.windows(ids, 32)
    assert rows.shape == (31, 33)
    assert torch.equal(rows[:, 1:].flatten(), ids[1 : 31 * 32 + 1])
    with pytest.raises(
        ParameterError, match="block_size: 1000 needs 1001 tokens for one window; the text has 1000"
    ):
        tokenization.windows(ids, 1000)


def test_overlap_finds_thirteen_words_in_a_row():
    exam = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    copied = (
        "Before. Two, three four FIVE six seven eight nine ten eleven twelve thirteen fourteen!"
    )
    close = copied.replace("eight", "8")
    assert corpora.overlap([close, copied, "", exam], [exam]) == [1, 3]


@pytest.mark.skipif(not WIKITEXT.exists(), reason="WikiText-2 is not on this machine")
def test_wikitext_2_has_its_known_number_of_tokens(tmp_path):
    from transformers import GPT2TokenizerFast

    folder = WIKITEXT / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    rows = pd.read_parquet(next((WIKITEXT / "wikitext-2-raw-v1").glob("test*")))["text"]
    corpus = corpora.corpus_of(
        "wikitext", {"train": ["a"], "validation": ["b"], "test": rows.tolist()}
    )
    assert tokenization.tokenize(corpus, tokenizer, tmp_path).counts["test"]["tokens"] == 287_644


def awkward_text():
    """White space and punctuation in every order, other scripts, and a special token."""
    generator = random.Random(0)
    parts = [
        "word",
        "it's",
        "42",
        ".",
        ":\n",
        "\n\n",
        "   ",
        " ",
        "\t",
        "\x1c",
        "\u00a0",
        "é",
        "日本",
        "<|endoftext|>",
    ]
    return "".join(generator.choice(parts) for _ in range(5000))


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 16])
def test_a_text_in_pieces_gives_the_tokens_of_the_whole(size):
    tokenizer, text = modeling.load_tokenizer("pydocs-base"), awkward_text()
    pieces = tokenization._pieces(text, tokenizer, size)
    assert "".join(pieces) == text and (len(pieces) > 20) == (size <= 100)
    ids = [i for piece in tokenization._encode(pieces, tokenizer) for i in piece]
    assert ids == tokenization._encode([text], tokenizer)[0]


def test_other_tokenizers_get_the_text_whole():
    from tokenizers import pre_tokenizers

    tokenizer = modeling.load_tokenizer("pydocs-base")
    assert tokenization._pieces("", tokenizer) == [""]
    for rule in (pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True)):
        tokenizer.backend_tokenizer.pre_tokenizer = rule
        assert tokenization._pieces("a b c d", tokenizer, 1) == ["a b c d"]
