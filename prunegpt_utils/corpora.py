"""Text by name or path, in three splits: train, validation, test."""

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import cached_json, expand_home, sha256
from prunegpt_utils.hub import fetch
from prunegpt_utils.splits import (
    SPLITS,
    documents_of,
    read_splits,
    split_documents,
    split_of,
    splits_said,
)

JOINER = "\n\n"  # between documents, as in the usual WikiText protocol
_FORMATS = (".txt", ".jsonl", ".parquet")
_REPLACED = {"builtins.input", "faulthandler.enable", "faulthandler.register"}  # by kernels


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
            `Salesforce/wikitext:wikitext-2-raw-v1`. Splits are those that the names of files, of
            subfolders or of the data set's splits say, see `read_splits`.
        cache: folder that keeps what is slow to collect.

    Raises:
        ParameterError: unknown name, binary text, no field named text, a row that is no text,
            splits that are not clear, or a split without text.
    """
    path, revision = expand_home(name), None
    if name in ("pydocs", "pydocs-small"):
        interpreter = f"{sys.implementation.name}-{sys.version.split()[0]}"
        splits = split_documents(cached_json(pydocs, Path(cache, f"pydocs-{interpreter}.json")))
        share = 10 if name == "pydocs-small" else 1
        splits = {split: documents[::share] for split, documents in splits.items()}
    elif _is_on_hub(name):
        splits, revision = _read_hub(name, cache)
    else:
        splits = _read_path(name, path)
    for split in SPLITS:
        if not any(document.strip() for document in splits[split]):
            raise ParameterError("data", name, f"has no text in its {split} split")
    return corpus_of(path.absolute().stem.replace(":", "-"), splits, revision)


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
    copy, revision = expand_home(copies or "") / last, None
    if copies and copy.exists():
        found, single = _text_files(copy)[0], copy.is_file()  # of a folder, its test split's files
        files = [f for label, f in found.items() if single or split_of(label) == "test"]
        documents = [text for file in files for text in _read_file(name, file)]
    else:
        whole = load_text(name, cache)
        documents, revision = whole.splits["test"], whole.revision
    if not any(document.strip() for document in documents):
        raise ParameterError("also_score", name, f"has no text in test files in {copy}")
    return corpus_of(last, {"train": [], "validation": [], "test": documents}, revision)


def corpus_of(name: str, splits: dict[str, list[str]], revision: str | None = None) -> Corpus:
    """Corpus of {split: documents}, with its hash."""
    return Corpus(name, splits, sha256(json.dumps(splits, sort_keys=True)), revision)


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
    folder with an `__init__.py` are missing. ParameterError if one is not installed.
    """
    seen, documents = set(), {}
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ParameterError("packages", package, "is not installed")
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


def cached_package_docs(packages: Iterable[str], cache: str | Path) -> dict[str, list[str]]:
    """`package_docs`, collected once for these packages in these versions, then read from `cache`.

    A package that changes while its version stays is not noticed.
    """
    owners, packages = importlib.metadata.packages_distributions(), list(packages)
    versions = {
        name: [importlib.metadata.version(owner) for owner in sorted(set(owners.get(name, [])))]
        for name in packages
    }
    key = sha256(json.dumps(versions))[:16]  # in order: of what several say the first is kept
    make = functools.partial(package_docs, packages)
    return cached_json(make, Path(cache, f"package-docs-{key}.json"))


def _compiled_docstrings(name):
    """Docstrings of a module without source (`builtins`, `math`, ...) and of what it holds."""
    module = importlib.import_module(name)
    texts = [module.__doc__]
    for key, thing in sorted(vars(module).items()):
        own = getattr(thing, "__module__", None) == name and f"{name}.{key}" not in _REPLACED
        if own and callable(thing):
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
    try:
        files, left_out = _text_files(path) if os.path.exists(path) else ({}, [])  # noqa: PTH110
    except OSError as error:
        raise ParameterError("data", name, f"cannot be read: {one_line(error)}") from error
    if not files:
        kinds = ", ".join(_FORMATS)
        allowed = f"must be pydocs, a file or folder of {kinds}, or owner/name[:config]"
        raise ParameterError("data", name, allowed)
    readers = {label: functools.partial(_read_file, name, file) for label, file in files.items()}
    return read_splits(name, readers, left_out)


_ABOUT = re.compile("(readme|licen[cs]e|copying|copyright|notice|citation|changelog)([^a-z]|$)")


def _text_files(path):
    """({name: file of text}, names of what is left out) of a file, or of a folder.

    Of subfolders those are read that name a split. Notes about the text are left out.
    """
    if path.is_file():
        return {path.name: path} if path.suffix.lower() in _FORMATS else {}, []
    inside = sorted(path.iterdir())
    below = [file for part in inside if splits_said(part.name) for file in sorted(part.rglob("*"))]
    found, left_out = {}, []
    for file in (*inside, *below):
        place, kind = file.relative_to(path), file.suffix.lower()
        if not file.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        if kind not in _FORMATS or (kind == ".txt" and _ABOUT.match(file.stem.lower())):
            left_out.append(str(place))
        else:
            found[str(place)] = file
    return found, left_out


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def _is_on_hub(name):
    """Whether a text is a data set of the hub: it has such a name, and nothing here has it."""
    return _HUB_NAME.fullmatch(name) and not os.path.exists(name)  # noqa: PTH110  (Path's can fail)


def download(name: str) -> None:
    """Get a data set of the hub onto this machine; of another text, nothing.

    Raises:
        ParameterError: there is none of that name, or the hub does not answer.
    """
    if _is_on_hub(name):
        repository, _, configuration = name.partition(":")
        fetch(repository, "dataset", "data", configuration)


def _read_hub(name, cache):
    """({split: documents}, commit) of a data set of the hub, from its cache if it is there."""
    from datasets import DatasetDict, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    repository, _, configuration = name.partition(":")
    folder = fetch(repository, "dataset", "data", configuration)
    disable_progress_bars()
    # A configuration with a folder of its own needs no data card to be found.
    own_folder = configuration and (folder / configuration).is_dir()
    which = {"data_dir" if own_folder else "name": configuration or None}
    try:
        found = load_dataset(str(folder), cache_dir=str(Path(cache, "datasets")), **which)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        problem = one_line(error.__cause__ or error)
        raise ParameterError("data", name, f"does not load: {problem}") from error
    found = found if isinstance(found, DatasetDict) else {"train": found}
    readers = {
        split: functools.partial(_column, name, split, rows) for split, rows in found.items()
    }
    return read_splits(name, readers), folder.name


def _column(name, split, rows):
    """The column `text` of a split of a data set of the hub."""
    if "text" not in rows.column_names:
        allowed = f"has no column named text in its {split} split, only {rows.column_names}"
        raise ParameterError("data", name, allowed)
    texts = enumerate(rows["text"][:], 1)
    return [_text(name, f"row {number} of its {split} split", text) for number, text in texts]


def _read_file(name, file):
    """Documents of one file: rows of a table, lines of WikiText, or paragraphs of a text."""
    try:
        rows = list(_rows(file))
    except OSError as error:
        raise ParameterError("data", name, f"cannot be read: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # too deep is a RuntimeError
        allowed = f"must hold UTF-8 text (in a field named text); {file.name} does not"
        raise ParameterError("data", name, allowed) from error
    return [_text(name, f"{place} of {file.name}", value) for place, value in rows]


def _rows(file):
    """(place, value) of each document of a file, whatever the value is."""
    if file.suffix.lower() == ".parquet":
        from pyarrow.parquet import read_table

        column = read_table(file, columns=["text"])["text"].to_pylist()
        yield from ((f"row {number}", value) for number, value in enumerate(column, 1))
        return
    text = file.read_text("utf-8-sig")  # a byte-order mark is not text
    if "\0" in text:
        raise UnicodeError
    if file.suffix.lower() == ".jsonl":
        lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        yield from ((f"line {number}", json.loads(line)["text"]) for number, line in lines)
    else:
        yield from documents_of(text)


def _text(name, place, value):
    """`value`, if it is a text that can be written as UTF-8, which JSON does not promise."""
    try:
        value.encode("utf-8")
    except (AttributeError, UnicodeError) as error:
        kind = "no text at all" if value is None else f"no text but {str(value)[:40]!r}"
        allowed = f"must hold UTF-8 text (in a field named text) in every row; {place} is {kind}"
        raise ParameterError("data", name, allowed) from error
    return value
