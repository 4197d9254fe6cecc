"""How long does it take to turn text into blocks of tokens?

Beside `datasets.map` twice, as the example script `run_clm` does it; the limit is the tokenizer
alone. The text is the source of the standard library.
"""

import itertools
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk

from benchmarks.side_by_side import options, ratio, row, time_prepared, write
from prunegpt_utils.corpora import JOINER, corpus_of
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.modeling import load_tokenizer
from prunegpt_utils.tokenization import tokenize, windows

BLOCK = 128


def source_text(size):
    """Documents of together `size` characters: files of the standard library, sorted."""
    found, have = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_text("utf-8", errors="ignore")[: size - have]
        if text.strip():
            found.append(text)
        have += len(text)
        if have >= size:
            break
    return found


def ours(documents, tokenizer, cache):
    """Training windows by this project."""
    corpus = corpus_of("text", {"train": documents, "validation": ["a"], "test": ["b"]})
    return windows(tokenize(corpus, tokenizer, cache).ids["train"], BLOCK)


def peer(folder, tokenizer):
    """Blocks by two maps over a data set on disk, with a cache beside it."""

    def encode(rows):
        return {"input_ids": tokenizer(rows["text"], verbose=False)["input_ids"]}

    def pack(rows):
        joined = list(itertools.chain(*rows["input_ids"]))
        whole = len(joined) // BLOCK * BLOCK
        return {"input_ids": [joined[i : i + BLOCK] for i in range(0, whole, BLOCK)]}

    data = load_from_disk(folder)
    data = data.map(encode, batched=True, remove_columns=["text"])
    return data.map(pack, batched=True)


def check(documents, tokenizer, cache, folder):
    """Ours are the tokens of the joined text, first and second time, and as many as the peer's.

    Raises:
        AssertionError: they are not.
    """
    plain = torch.tensor(tokenizer(JOINER.join(documents), verbose=False)["input_ids"])
    for _ in range(2):
        found = ours(documents, tokenizer, cache)
        assert torch.equal(found[:, :-1].flatten(), plain[: len(found) * BLOCK])
    blocks = len(peer(folder, tokenizer))
    dropped = 1 + len(documents) // 1000  # a part of a block in every thousand rows
    joiners = 2 * len(documents) / BLOCK
    assert abs(blocks - len(found)) <= dropped + joiners


def measure(size, large, turns, goals):
    """Rows of a text of `size` characters, and of one of `large`."""
    disable_progress_bars()
    tokenizer, documents = load_tokenizer("pydocs-base"), source_text(size)
    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder, str(number)) for number in itertools.count())
        place = {}

        def prepare(name):
            place["now"] = next(fresh)
            if name in ("datasets.map", "check"):
                Dataset.from_dict({"text": documents}).save_to_disk(place["now"])

        prepare("check")
        check(documents, tokenizer, next(fresh), place["now"])
        acts = {
            "ours": lambda: ours(documents, tokenizer, place["now"]),
            "datasets.map": lambda: peer(place["now"], tokenizer),
            "limit": lambda: tokenizer.backend_tokenizer.encode_batch_fast(documents),
        }
        seconds = time_prepared(acts, prepare, turns)
        text, cache = source_text(large), next(fresh)
        begin = time.perf_counter()
        ours(text, tokenizer, cache)
        first = time.perf_counter() - begin
        again = time_in_turns({"again": lambda: ours(text, tokenizer, cache)}, turns)["again"]
    what = f"tokenise and pack {size / 1e6:g} MB"
    evidence = {"seconds": seconds, "bytes": size, "operations": None}
    return [
        row(what, "datasets.map", "times as fast", ratio(seconds, "datasets.map", "ours"),
            goals and ">= 1", **evidence),
        row(what, "the tokenizer alone", "of its speed", ratio(seconds, "limit", "ours")),
        row(f"{large / 1e6:g} MB, cached", "", "seconds", statistics.median(again),
            goals and "<= 1", seconds={"first": [first], "again": again}, bytes=large),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    size, large = (20_000, 40_000) if smoke else (4_000_000, 30_000_000)
    return write(
        "tokenising", "tokenising and packing", measure(size, large, turns, goals=not smoke), smoke
    )


if __name__ == "__main__":
    main()
