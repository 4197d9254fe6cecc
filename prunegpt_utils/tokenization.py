"""Text to token ids in the layouts of the perplexity protocols, and to training windows."""

import hashlib
import itertools
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunegpt_utils.corpora import JOINER, SPLITS, Corpus
from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import atomic_path, sha256
from prunegpt_utils.splits import TITLE


@dataclass
class Layout:
    """Token sequences of one split, one after the other, as a protocol wants them.

    Attributes:
        ids: int64 tensor of shape (tokens,).  lengths: of the sequences, which sum to `tokens`.
        words, bytes: of the text that the tokens stand for.
    """

    ids: torch.Tensor
    lengths: list
    words: int
    bytes: int

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass
class Tokens:
    """A corpus as token ids.

    Attributes:
        corpus: name of the text.  sha256: hash of the text.  revision: of the hub, or None.
        layouts: {layout: {split: Layout}}: `joined` is one sequence, all documents joined by
            `JOINER`, of every split; of validation and test also `rows`, one sequence a thousand
            documents, run together without a separator, and `pages`, one a page, de-tokenised,
            with bos or else eos before it; without either there are no `pages`.
    """

    corpus: str
    sha256: str
    revision: str | None
    layouts: dict

    @property
    def ids(self) -> dict[str, torch.Tensor]:
        """{split: int64 tensor of shape (tokens,)}, documents joined by `JOINER`."""
        return {split: text.ids for split, text in self.layouts["joined"].items()}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {"tokens", "words", "bytes"}} of `ids`."""
        texts = self.layouts["joined"].items()
        return {s: {"tokens": t.tokens, "words": t.words, "bytes": t.bytes} for s, t in texts}

    @property
    def summary(self) -> dict:
        """What a record says of the text."""
        source = {"name": self.corpus, "sha256": self.sha256, "revision": self.revision}
        return source | {"train_tokens": len(self.ids["train"])}


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache: str | Path) -> Tokens:
    """Token ids of every split; made once, then read from `cache`.

    They are those of the tokenizer's own call without special tokens, truncation and padding.

    Raises:
        ParameterError: the tokenizer splits words at random.
    """
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        allowed = "has a tokenizer that splits words at random; set dropout to null in its file"
        raise ParameterError("model", tokenizer.name_or_path, allowed)
    key = sha256(corpus.sha256 + _fingerprint(tokenizer))[:16]
    path = Path(cache, f"tokens-{corpus.name[:40]}-{key}.safetensors")
    if not path.exists():
        _write(path, corpus, tokenizer)
    layouts = {name: {} for name in _LAYOUTS}
    with safe_open(path, "pt") as file:
        for name, sizes in json.loads(file.metadata()["layouts"]).items():
            layout, split = name.split(".")
            layouts[layout][split] = Layout(file.get_tensor(name).long(), *sizes)
    return Tokens(corpus.name, corpus.sha256, corpus.revision, layouts)


def _fingerprint(tokenizer):
    """All that decides which ids a text gets: code, class, and what the tokenizer's files say."""
    versions = f"{tokenizers.__version__} {transformers.__version__}"
    special = f"{tokenizer.split_special_tokens} {tokenizer.bos_token} {tokenizer.eos_token}"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return f"{versions} {type(tokenizer)} {special} {files}"


def _write(path, corpus, tokenizer):
    """All layouts of what is scored; of the training text the one that training windows need."""
    texts = {
        f"{name}.{split}": text
        for name, layout in _LAYOUTS.items()
        for split in (SPLITS if name == "joined" else SPLITS[1:])
        if (text := layout(corpus.splits[split], tokenizer))
    }
    sizes = {name: [text.lengths, text.words, text.bytes] for name, text in texts.items()}
    with atomic_path(path) as part:
        save_file({name: t.ids for name, t in texts.items()}, part, {"layouts": json.dumps(sizes)})


def _encode(texts, tokenizer):
    """One list of ids a text, as the tokenizer's own call gives them."""
    texts, plain = list(texts), {"add_special_tokens": False}
    if not texts:
        return []
    try:
        if backend := _backend(tokenizer):  # twice as fast: where each token stood is not asked for
            return [found.ids for found in backend.encode_batch_fast(texts, **plain)]
        return tokenizer(texts, truncation=False, padding=False, verbose=False, **plain)[
            "input_ids"
        ]
    except Exception as error:  # the Rust part has no class for its errors
        allowed = f"has a tokenizer that cannot read this text: {one_line(error)}"
        raise ParameterError("model", tokenizer.name_or_path, allowed) from error


def _backend(tokenizer):
    """The Rust tokenizer, set up as the own call does, where that call does nothing else."""
    stock = PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus
    if (type(tokenizer).__call__, type(tokenizer)._encode_plus) != stock:
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _layout(sequences, words, size):
    ids = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)
    return Layout(torch.from_numpy(ids), [len(sequence) for sequence in sequences], words, size)


def _size(text):
    return len(text.encode("utf-8", "surrogatepass"))


def _joined(documents, tokenizer):
    text = JOINER.join(documents)
    parts = _encode(_pieces(text, tokenizer), tokenizer)
    return _layout([list(itertools.chain(*parts))], len(text.split()), _size(text))


_BEFORE_SPACE = re.compile(r"(?<=[A-Za-z0-9])(?=[ \n])")


def _pieces(text, tokenizer, size=1 << 16):
    """The text in pieces that give the same tokens, so that several threads can encode them.

    Tokens of GPT-2's kind never reach from a letter to the white space after it, so there the text
    may be cut; for a tokenizer that splits words by other rules it stays whole.
    """
    if not _cuts_before_spaces(tokenizer):
        return [text]
    pieces, begin = [], 0
    while begin < len(text):
        cut = _BEFORE_SPACE.search(text, begin + size)
        end = cut.start() if cut else len(text)
        pieces.append(text[begin:end])
        begin = end
    return pieces or [text]


def _cuts_before_spaces(tokenizer):
    """Whether no token of any text, added ones included, depends on what such a cut parts."""
    if (backend := _backend(tokenizer)) is None:
        return False
    rules = json.loads(backend.to_str())
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    reaching = (
        token["lstrip"] or token["rstrip"] or token["single_word"]
        or _BEFORE_SPACE.search(token["content"])
        for token in rules["added_tokens"]
    )  # fmt: skip
    plain = not rules["normalizer"] and split.items() <= (rules["pre_tokenizer"] or {}).items()
    return plain and not any(reaching)


def _rows(documents, tokenizer, group=1000):
    """As the example script `run_clm` sees a data set: by rows, in groups of a thousand."""
    rows, text = _encode(documents, tokenizer), "".join(documents)
    groups = [rows[i : i + group] for i in range(0, len(rows), group)]
    sequences = [list(itertools.chain(*group)) for group in groups]
    return _layout(sequences, len(text.split()), _size(text))


def _pages(documents, tokenizer):
    """As lm-eval scores WikiText: pages, natural spacing, words and bytes of the original.

    None where the tokenizer has neither of the tokens with which a page begins.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        return None
    originals = pages(documents)
    spaced = any(map(TITLE.fullmatch, documents))
    texts = map(detokenize, originals) if spaced else originals
    sequences = [[eos if bos is None else bos, *row] for row in _encode(texts, tokenizer)]
    words = sum(len(re.split(r"\s+", page)) for page in originals)
    return _layout(sequences, words, sum(map(_size, originals)))


_LAYOUTS = {"joined": _joined, "rows": _rows, "pages": _pages}


def pages(rows: list[str]) -> list[str]:
    r"""WikiText's rows as whole pages; documents without such titles are a page each.

    An empty row stands for the blank line of the original, " \n".
    """
    if not any(map(TITLE.fullmatch, rows)):
        return [row for row in rows if row.strip()]
    found = []
    for row in rows:
        if TITLE.fullmatch(row) or not found:
            found.append("")
        found[-1] += row or " \n"
    *others, last = found  # the line break before a title belongs to no page
    return [page for page in (*(p.removesuffix("\n") for p in others), last) if page.strip()]


# WikiText writes text as separate words; these rules undo it, in this order. They are those of the
# usual word-level evaluation, so that its perplexities compare.
_DETOKENIZE = (
    (r"s '", "s'"), (r" @([-,.])@ ", r"\1"),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"), (r'"\s*([^"]*?)\s*"', r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="),
    (r" ° ", "°"), (r" \n", "\n"), (r"\n ", "\n"), (r" N ", " 1 "), (r" 's", "'s"),
)  # fmt: skip


def detokenize(text: str) -> str:
    """WikiText with the spacing of ordinary English: "1 @,@ 000 ( one )" is "1,000 (one)"."""
    for pattern, instead in _DETOKENIZE:
        text = re.sub(pattern, instead, text)
    return text


def windows(ids: torch.Tensor, block_size: int) -> torch.Tensor:
    """Training windows of `ids`, shape (tokens,): `block_size` inputs and their next tokens.

    Returns:
        int64 tensor of shape (windows, block_size + 1), a view on `ids`: the last token of one
        window is the first of the next, so every token but the first is predicted once.

    Raises:
        ParameterError: the text is shorter than one window.
    """
    if len(ids) < block_size + 1:
        allowed = f"needs {block_size + 1} tokens for one window; the text has {len(ids)}"
        raise ParameterError("block_size", block_size, allowed)
    return ids.unfold(0, block_size + 1, block_size)


def batch_indices(n: int, batch: int, index: int, seed: int) -> list[int]:
    """Windows of micro-batch `index`: consecutive slices of one permutation an epoch.

    A function of its arguments alone, so that a resumed run needs no sampler state: `n` windows of
    the text, `batch` windows a micro-batch, the `seed` of the permutations.
    """
    rows, place = [], index * batch
    while len(rows) < batch:
        epoch, offset = divmod(place + len(rows), n)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rows += torch.randperm(n, generator=generator)[offset : offset + batch - len(rows)].tolist()
    return rows
