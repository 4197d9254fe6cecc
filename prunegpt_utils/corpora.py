"""Text by name or path, in three splits: train, validation, test."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import cached_json
from prunegpt_utils.hub import fetch

SPLITS = ("train", "validation", "test")
JOINER = "\n\n"  # between documents, as in the usual WikiText protocol
_FORMATS = (".txt", ".jsonl", ".parquet")
_HELD_OUT = 0.05  # share of the documents in validation, and again in test


@dataclass
class Corpus:
    """Text split by document.

    Attributes:
        name: what the user asked for (`pydocs`, a file name, a folder name).
        splits: {split: list of documents}.  sha256: of these and where they belong.
        revision: the hub's commit it came from, or None.
    """

    name: str
    splits: dict
    sha256: str
    revision: str | None = None

    def text(self, split: str) -> str:
        """One string: the documents of `split`, joined as the perplexity protocol asks."""
        return JOINER.join(self.splits[split])


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

    Raises:
        ParameterError: unknown name, binary text, no field named text, or a split without text.
    """
    path, revision = Path(name).expanduser(), None
    if name in ("pydocs", "pydocs-small"):
        interpreter = f"{sys.implementation.name}-{sys.version.split()[0]}"
        splits = split_documents(cached_json(pydocs, Path(cache, f"pydocs-{interpreter}.json")))
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


def load_test(name: str, cache: str | Path) -> Corpus:
    """The test split alone, of a text that is only scored; the other two are empty.

    Args:
        name: `pydocs` or a data set of the hub, see `load_text`. Where the environment variable
            PRUNEGPT_TEXTS names a folder, a file or folder in it that is called like the last part
            of the name (`wikitext-2-raw-v1`) is read instead; of a folder, its test files.
        cache: as for `load_text`.

    Raises:
        ParameterError: as `load_text`, or there are no test files.
    """
    last, copies = re.split("[/:]", name)[-1], os.environ.get("PRUNEGPT_TEXTS")
    copy, revision = Path(copies or "", last).expanduser(), None
    if copies and copy.exists():
        files = [copy] if copy.is_file() else sorted(copy.glob("test*"))
        parts = [_read_file(name, file) for file in files if file.suffix in _FORMATS]
        documents = list(itertools.chain(*parts))
    else:
        whole = load_text(name, cache)
        documents, revision = whole.splits["test"], whole.revision
    if not any(document.strip() for document in documents):
        raise ParameterError("also_score", name, f"has no text in test files in {copy}")
    return corpus_of(last, {"train": [], "validation": [], "test": documents}, revision)


def corpus_of(name: str, splits: dict[str, list[str]], revision: str | None = None) -> Corpus:
    """Corpus of {split: documents}, with its hash."""
    return Corpus(name, splits, sha256(json.dumps(splits, sort_keys=True)), revision)


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """{split: documents}: exact duplicates dropped, each placed by a hash of its own content.

    The hash keeps a document in its split when others come or go.
    """
    splits = {split: [] for split in SPLITS}
    for document in dict.fromkeys(documents):
        place = int(sha256(document)[:8], 16) / 16**8
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
    modules += map(_compiled_docstrings, sorted(sys.builtin_module_names))
    documents = [JOINER.join(texts) for texts in modules]
    documents += [topics[name].strip() for name in sorted(topics)]
    return [document for document in documents if len(document) >= 200]


def docstrings(file: Path) -> list[str]:
    """All docstrings of one Python file in source order, repeats dropped."""
    try:
        tree = ast.parse(Path(file).read_text("utf-8", errors="strict"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return _unique(map(ast.get_docstring, sorted(nodes, key=lambda n: getattr(n, "lineno", 0))))


def _unique(texts):
    """Texts with content, each once, in order."""
    texts = (text.strip() for text in texts if isinstance(text, str))
    return list(dict.fromkeys(text for text in texts if text))


def package_docs(packages: Iterable[str]) -> dict[str, list[str]]:
    """Documentation of packages that are installed: {import name: a document a Python file}.

    A docstring that several files repeat is kept once, tests are left out, and packages that are no
    folder with an `__init__.py` are missing.
    """
    seen, documents = set(), {}
    for package in packages:
        if (origin := importlib.util.find_spec(package).origin) is None:
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


def _read_path(name, path):
    files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    files = [file for file in files if file.suffix in _FORMATS]
    if not files:
        kinds = ", ".join(_FORMATS)
        allowed = f"must be pydocs, a file or folder of {kinds}, or owner/name[:config]"
        raise ParameterError("data", name, allowed)
    named, loose = {split: [] for split in SPLITS}, []
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
    own_folder = configuration and (folder / configuration).is_dir()
    which = {"data_dir" if own_folder else "name": configuration or None}
    try:
        found = load_dataset(str(folder), cache_dir=str(Path(cache, "datasets")), **which)
    except (OSError, ValueError, RuntimeError) as error:
        raise ParameterError("data", name, f"does not load: {one_line(error)}") from error
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
            from pyarrow.parquet import read_table

            return [_text(t) for t in read_table(file, columns=["text"])["text"].to_pylist()]
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


def sha256(text: str) -> str:
    """Hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
