"""Text by name or path in three splits; text to tokens; tokens to windows."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import re
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from prunegpt_utils.hub import fetch
from prunegpt_utils.parameters import ParameterError

SPLITS = ("train", "validation", "test")
JOINER = "\n\n"  # between documents, as in the usual WikiText protocol
_FORMATS = (".txt", ".jsonl", ".parquet")
_HELD_OUT = 0.05  # share of the documents in validation, and again in test


@dataclass
class Corpus:
    """Text split by document.

    Attributes:
        name: what the user asked for (`pydocs`, a file name, a folder name).
        splits: {split: list of documents}.
        sha256: hash of all documents and where they belong.
        revision: the hub's commit it came from, or None.
    """

    name: str
    splits: dict
    sha256: str
    revision: str | None = None

    def text(self, split: str) -> str:
        """One string: the documents of `split`, joined as the perplexity protocol asks."""
        return JOINER.join(self.splits[split])


@dataclass
class Laid:
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
        ids: {split: int64 tensor of shape (tokens,)}, documents joined by `JOINER`.
        counts: {split: {"tokens", "words", "bytes"}} of `ids`.
        laid: {layout: {split: Laid}} of validation and test: `joined` is one sequence, the same
            as `ids`; `rows` has one sequence a thousand documents, run together without a
            separator; `pages` has one a page, de-tokenised, with an end-of-text token before it.
    """

    corpus: str
    sha256: str
    revision: str | None
    ids: dict
    counts: dict
    laid: dict

    @property
    def about(self) -> dict:
        """What a record says of the text."""
        return {
            "name": self.corpus, "sha256": self.sha256, "revision": self.revision,
            "train_tokens": len(self.ids["train"]),
        }  # fmt: skip


def load_text(name: str, cache: str | Path) -> Corpus:
    """Text by name.

    Args:
        name: `pydocs`; or `pydocs-small`, every tenth document of each of its splits, to try
            things out; or the path of a .txt, .jsonl or .parquet file, or of a folder of them; or
            a data set of the hub, with its configuration behind a colon, such as
            `Salesforce/wikitext:wikitext-2-raw-v1`. Splits are those of the data set, or of
            files whose names start with train, valid and test; else documents are split by a
            hash of their content, 90 : 5 : 5.
        cache: folder that keeps what is slow to collect.

    Returns:
        Corpus.

    Raises:
        ParameterError: unknown name, empty or binary text, no field named text, or a split
            without text.
    """
    path, revision = Path(name).expanduser(), None
    if name in ("pydocs", "pydocs-small"):
        splits = split_documents(cached(pydocs, Path(cache, f"pydocs-{_interpreter()}.json")))
        share = 10 if name == "pydocs-small" else 1
        splits = {split: documents[::share] for split, documents in splits.items()}
    elif _HUB_NAME.fullmatch(name) and not path.exists():
        splits, revision = _read_hub(name, cache)
    else:
        splits = _read_path(name, path)
    for split in SPLITS:
        if not any(document.strip() for document in splits[split]):
            raise ParameterError("data", name, f"has no text in its {split} split")
    return corpus_of(path.stem.replace(":", "-"), splits, revision)


def corpus_of(name: str, splits: dict[str, list[str]], revision: str | None = None) -> Corpus:
    """Corpus of {split: documents}, with its hash."""
    return Corpus(name, splits, _sha256(json.dumps(splits, sort_keys=True)), revision)


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """{split: documents}: exact duplicates dropped, each placed by a hash of its own content.

    The hash keeps a document in its split when others come or go.
    """
    splits = {split: [] for split in SPLITS}
    for document in dict.fromkeys(documents):
        place = int(_sha256(document)[:8], 16) / 16**8
        held = "validation" if place < _HELD_OUT else "test"
        splits["train" if place >= 2 * _HELD_OUT else held].append(document)
    return splits


def pydocs() -> list[str]:
    """Documentation of the running interpreter's standard library, one document a module or topic.

    `pydoc` topics, docstrings of the library's Python files and of its compiled modules. Whole
    modules stay together, so that a function's text cannot stand on both sides of the split.
    """
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"test", "tests", "idlelib", "site-packages", "lib2to3", "pydoc_data", "turtledemo"}
    files = [f for f in sorted(root.rglob("*.py")) if skip.isdisjoint(f.relative_to(root).parts)]
    modules = [docstrings(file) for file in files]
    modules += [_compiled_docstrings(name) for name in sorted(sys.builtin_module_names)]
    documents = [JOINER.join(texts) for texts in modules]
    documents += [topics[name].strip() for name in sorted(topics)]
    return [document for document in documents if len(document) >= 200]


def _interpreter():
    return f"{sys.implementation.name}-{sys.version.split()[0]}"


def cached(make: Callable, path: Path) -> Any:
    """`make()`, read from the JSON file `path` from the second call on."""
    if not path.exists():
        _write(path, lambda part: part.write_text(json.dumps(make()), "utf-8"))
    return json.loads(path.read_text("utf-8"))


def _write(path, save):
    """Let `save` write a temporary file, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        save(part)
        part.replace(path)


def docstrings(file: Path) -> list[str]:
    """All docstrings of one Python file in source order, repeats dropped."""
    try:
        tree = ast.parse(Path(file).read_text("utf-8", errors="strict"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return _unique(ast.get_docstring(node) for node in nodes)


def _unique(texts):
    """Texts with content, each once, in order."""
    texts = (text.strip() for text in texts if isinstance(text, str))
    return list(dict.fromkeys(text for text in texts if text))


def package_docs(packages: Iterable[str]) -> dict[str, list[str]]:
    """Documentation of installed packages, one document a Python file.

    Args:
        packages: import names; each must be installed. Those that are no folder with an
            `__init__.py` have no documents.

    Returns:
        {package: list of documents}; a docstring that several files repeat is kept once, and
        tests are left out.
    """
    seen, documents = set(), {}
    for package in packages:
        origin = importlib.util.find_spec(package).origin
        if origin is None:
            continue
        root = Path(origin).parent
        files = [f for f in sorted(root.rglob("*.py")) if "test" not in str(f.relative_to(root))]
        texts = []
        for file in files:
            parts = [part for part in docstrings(file) if part not in seen]
            seen.update(parts)
            texts.append(JOINER.join(parts))
        documents[package] = [text for text in texts if len(text) >= 200]
    return documents


def _compiled_docstrings(name):
    """Docstrings of a module without source (`builtins`, `math`, ...) and of what it holds."""
    module = importlib.import_module(name)
    texts = [module.__doc__]
    for _, thing in sorted(vars(module).items()):
        if getattr(thing, "__module__", None) == name and callable(thing):
            texts.append(inspect.getdoc(thing))
            if inspect.isclass(thing):
                texts += [inspect.getdoc(member) for _, member in sorted(vars(thing).items())]
    return _unique(texts)


def installed_packages() -> list[str]:
    """Import names of all installed packages that have Python files, sorted."""
    names = sorted(importlib.metadata.packages_distributions())
    own = {name for name in names if name.isidentifier() and not name.startswith("_")}
    specs = {name: importlib.util.find_spec(name) for name in sorted(own - sys.stdlib_module_names)}
    return [name for name, spec in specs.items() if spec and spec.submodule_search_locations]


def overlap(documents: list[str], reference: list[str], n: int = 13) -> list[int]:
    """Indices of `documents` that share a run of `n` words with any of `reference`.

    The contamination test of Brown et al. 2020 (GPT-3), appendix C: lower-case words, n = 13.
    """
    seen = set().union(*(_ngrams(document, n) for document in reference))
    return [i for i, document in enumerate(documents) if not seen.isdisjoint(_ngrams(document, n))]


def _ngrams(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache: str | Path) -> Tokens:
    """Token ids of every split; done once, then read from `cache`.

    Args:
        corpus: Corpus.
        tokenizer: a fast Hugging Face tokenizer.
        cache: folder for the token file.

    Returns:
        Tokens.
    """
    key = _sha256(corpus.sha256 + tokenizer.backend_tokenizer.to_str())[:16]
    path = Path(cache, f"ids-{corpus.name}-{key}.safetensors")
    if not path.exists():
        laid = {f"joined.{split}": _joined(corpus.splits[split], tokenizer) for split in SPLITS}
        for split in SPLITS[1:]:
            laid[f"rows.{split}"] = _rows(corpus.splits[split], tokenizer)
            laid[f"pages.{split}"] = _pages(corpus.splits[split], tokenizer)
        note = {name: [text.lengths, text.words, text.bytes] for name, text in laid.items()}
        ids = {name: text.ids for name, text in laid.items()}
        _write(path, lambda part: save_file(ids, part, {"laid": json.dumps(note)}))
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["laid"])
        laid = {layout: {} for layout in ("joined", "rows", "pages")}
        for name, rest in note.items():
            layout, split = name.split(".")
            laid[layout][split] = Laid(file.get_tensor(name).long(), *rest)
    ids = {split: text.ids for split, text in laid["joined"].items()}
    counts = {
        split: {"tokens": text.tokens, "words": text.words, "bytes": text.bytes}
        for split, text in laid["joined"].items()
    }
    return Tokens(corpus.name, corpus.sha256, corpus.revision, ids, counts, laid)


def _encode(texts, tokenizer):
    """One list of ids a text; where each token stood in it is not asked for."""
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    return [found.ids for found in encode(list(texts), add_special_tokens=False)]


def _laid(sequences, words, size):
    ids = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)
    return Laid(torch.from_numpy(ids), [len(sequence) for sequence in sequences], words, size)


def _size(text):
    return len(text.encode("utf-8", "surrogatepass"))


def _joined(documents, tokenizer):
    text = JOINER.join(documents)
    parts = _encode(_pieces(text, tokenizer), tokenizer)
    return _laid([list(itertools.chain(*parts))], len(text.split()), _size(text))


_BEFORE_SPACE = re.compile(r"(?<=[A-Za-z0-9])(?=[ \n])")


def _pieces(text, tokenizer, size=1 << 16):
    """The text in pieces that give the same tokens, so that several threads can encode them.

    Tokens of GPT-2's kind never reach from a letter to the white space after it, so there the text
    may be cut; for a tokenizer that splits words by other rules it stays whole.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if rules["normalizer"] or not split.items() <= (rules["pre_tokenizer"] or {}).items():
        return [text]
    pieces, begin = [], 0
    while begin < len(text):
        cut = _BEFORE_SPACE.search(text, begin + size)
        end = cut.start() if cut else len(text)
        pieces.append(text[begin:end])
        begin = end
    return pieces or [text]


def _rows(documents, tokenizer, group=1000):
    """As the example script `run_clm` sees a data set: by rows, in groups of a thousand."""
    rows, text = _encode(list(documents), tokenizer), "".join(documents)
    groups = [rows[i : i + group] for i in range(0, len(rows), group)]
    sequences = [list(itertools.chain(*group)) for group in groups]
    return _laid(sequences, len(text.split()), _size(text))


def _pages(documents, tokenizer):
    """As lm-eval scores WikiText: pages, natural spacing, words and bytes of the original."""
    originals = pages(documents)
    end = tokenizer.eos_token_id
    spaced = any(_TITLE.fullmatch(row) for row in documents)
    texts = [natural(page) for page in originals] if spaced else originals
    sequences = [[end, *row] for row in _encode(texts, tokenizer)]
    words = sum(len(re.split(r"\s+", page)) for page in originals)
    return _laid(sequences, words, sum(map(_size, originals)))


_TITLE = re.compile(r" = [^=].*[^=] = \n")  # " = Title = "; sections have more equals signs


def pages(rows: list[str]) -> list[str]:
    r"""WikiText's rows as whole pages; documents without such titles are a page each.

    Args:
        rows: list of str. An empty row stands for the blank line of the original, " \n".

    Returns:
        list of str.
    """
    if not any(_TITLE.fullmatch(row) for row in rows):
        return [row for row in rows if row.strip()]
    found = []
    for row in rows:
        if _TITLE.fullmatch(row) or not found:
            found.append("")
        found[-1] += row or " \n"
    return [page for page in found if page.strip()]


# WikiText writes text as separate words; these rules undo it, in this order. They are those of the
# usual word-level evaluation, so that its perplexities compare.
_NATURAL = (
    (r"s '", "s'"),
    (r" @([-,.])@ ", r"\1"),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def natural(text: str) -> str:
    """WikiText with the spacing of ordinary English: "1 @,@ 000 ( one )" is "1,000 (one)"."""
    for pattern, instead in _NATURAL:
        text = re.sub(pattern, instead, text)
    return text


def windows(ids: torch.Tensor, block: int) -> torch.Tensor:
    """Training windows: `block` inputs and their next tokens.

    Args:
        ids: int64 tensor of shape (tokens,).
        block: inputs a window.

    Returns:
        int64 tensor of shape (windows, block + 1), a view on `ids`: the last token of one
        window is the first of the next, so every token but the first is predicted once.

    Raises:
        ParameterError: the text is shorter than one window.
    """
    if len(ids) < block + 1:
        allowed = f"needs {block + 1} tokens for one window; the text has {len(ids)}"
        raise ParameterError("block", block, allowed)
    return ids.unfold(0, block + 1, block)


def _read_path(name, path):
    files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    files = [file for file in files if file.suffix in _FORMATS]
    if not files:
        allowed = (
            f"must be pydocs, a file or folder of {', '.join(_FORMATS)}, or owner/name[:config]"
        )
        raise ParameterError("data", name, allowed)
    named = {split: [] for split in SPLITS}
    loose = []
    for file in files:
        match = [split for split in SPLITS if file.stem.startswith(split[:5])]
        (named[match[0]] if match else loose).extend(_read_file(name, file))
    if any(named.values()) and not loose:
        return named
    return split_documents([*loose, *itertools.chain(*named.values())])


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def _read_hub(name, cache):
    """({split: documents}, commit) of a data set of the hub, from its cache if it is there."""
    from datasets import DatasetDict, disable_progress_bars, load_dataset

    repository, _, configuration = name.partition(":")
    folder = fetch(repository, "dataset", "data", f"{configuration}*", None)
    disable_progress_bars()
    # A configuration with a folder of its own needs no data card to be found.
    which = {"name": configuration or None}
    if configuration and (folder / configuration).is_dir():
        which = {"data_dir": configuration}
    try:
        found = load_dataset(str(folder), cache_dir=str(Path(cache, "datasets")), **which)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ParameterError("data", name, f"does not load: {reason}") from error
    found = found if isinstance(found, DatasetDict) else {"train": found}
    for split, rows in found.items():
        if "text" not in rows.column_names:
            allowed = f"has no column named text in its {split} split, only {rows.column_names}"
            raise ParameterError("data", name, allowed)
    if all(split in found for split in SPLITS):
        return {split: found[split]["text"][:] for split in SPLITS}, folder.name
    texts = itertools.chain(*(rows["text"] for rows in found.values()))
    return split_documents([text for text in texts if text.strip()]), folder.name


def _read_file(name, file):
    """Documents of one file: rows of a table, or paragraphs of a text."""
    try:
        if file.suffix == ".parquet":
            import pandas

            return [_text(t) for t in pandas.read_parquet(file, columns=["text"])["text"]]
        text = file.read_text("utf-8-sig")  # a byte-order mark is not text
        if "\0" in text:
            raise UnicodeError
        if file.suffix == ".jsonl":
            return [_text(json.loads(line)["text"]) for line in text.split("\n") if line.strip()]
    except (UnicodeError, ValueError, KeyError, TypeError, OSError) as error:
        allowed = f"must hold UTF-8 text (in a field named text); {file.name} does not"
        raise ParameterError("data", name, allowed) from error
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _text(value):
    """A text that can be written as UTF-8, which JSON does not promise."""
    if not isinstance(value, str):
        raise TypeError
    value.encode("utf-8")
    return value


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
