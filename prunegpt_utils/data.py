"""Text by name or path in three splits; text to tokens; tokens to windows."""

import ast
import hashlib
import importlib.util
import inspect
import itertools
import json
import re
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

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
    """

    name: str
    splits: dict
    sha256: str

    def text(self, split):
        """One string: the documents of `split`, joined as the perplexity protocol asks."""
        return JOINER.join(self.splits[split])


@dataclass
class Tokens:
    """A corpus as token ids.

    Attributes:
        corpus: name of the text.  sha256: hash of the text.
        ids: {split: int64 tensor of shape (tokens,)}.
        counts: {split: {"tokens", "words", "bytes"}}.
    """

    corpus: str
    sha256: str
    ids: dict
    counts: dict


def load_text(name, cache):
    """Text by name.

    Args:
        name: `pydocs`, or the path of a .txt, .jsonl or .parquet file, or of a folder of them.
            A file whose name starts with train, valid or test is that split; else documents
            are split by a hash of their content, 90 : 5 : 5.
        cache: folder that keeps what is slow to collect.

    Returns:
        Corpus.

    Raises:
        ParameterError: unknown name, empty or binary text, or a split without text.
    """
    if name == "pydocs":
        splits = split_documents(_cached(pydocs, Path(cache, f"pydocs-{_interpreter()}.json")))
    else:
        splits = _read_path(name, Path(name).expanduser())
    for split in SPLITS:
        if not any(document.strip() for document in splits[split]):
            raise ParameterError("data", name, f"has no text in its {split} split")
    return corpus_of(Path(name).stem, splits)


def corpus_of(name, splits):
    """Corpus of {split: documents}, with its hash."""
    return Corpus(name, splits, _sha256(json.dumps(splits, sort_keys=True)))


def split_documents(documents):
    """{split: documents}: exact duplicates dropped, each placed by a hash of its own content.

    The hash keeps a document in its split when others come or go.
    """
    splits = {split: [] for split in SPLITS}
    for document in dict.fromkeys(documents):
        place = int(_sha256(document)[:8], 16) / 16**8
        held = "validation" if place < _HELD_OUT else "test"
        splits["train" if place >= 2 * _HELD_OUT else held].append(document)
    return splits


def pydocs():
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


def _cached(make, path):
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


def docstrings(file):
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


def package_docs(packages):
    """Documentation of installed packages, one document a Python file.

    Args:
        packages: import names; each must be installed.

    Returns:
        {package: list of documents}; a docstring that several files repeat is kept once, and
        tests are left out.
    """
    seen, documents = set(), {}
    for package in packages:
        root = Path(importlib.util.find_spec(package).origin).parent
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


def overlap(documents, reference, n=13):
    """Indices of `documents` that share a run of `n` words with any of `reference`.

    The contamination test of Brown et al. 2020 (GPT-3), appendix C: lower-case words, n = 13.
    """
    seen = set().union(*(_ngrams(document, n) for document in reference))
    return [i for i, document in enumerate(documents) if not seen.isdisjoint(_ngrams(document, n))]


def _ngrams(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def tokenize(corpus, tokenizer, cache):
    """Token ids of every split; done once, then read from `cache`.

    Args:
        corpus: Corpus.
        tokenizer: a fast Hugging Face tokenizer.
        cache: folder for the token file.

    Returns:
        Tokens.
    """
    key = _sha256(corpus.sha256 + tokenizer.backend_tokenizer.to_str())[:16]
    path = Path(cache, f"tokens-{corpus.name}-{key}.safetensors")
    if not path.exists():
        texts = {split: corpus.text(split) for split in SPLITS}
        ids = {split: _encode(text, tokenizer) for split, text in texts.items()}
        counts = {
            split: {
                "tokens": len(ids[split]),
                "words": len(text.split()),
                "bytes": len(text.encode("utf-8", "surrogatepass")),
            }
            for split, text in texts.items()
        }
        metadata = {"counts": json.dumps(counts)}
        _write(path, lambda part: save_file(ids, part, metadata))
    with safe_open(path, "pt") as file:
        ids = {split: file.get_tensor(split).long() for split in SPLITS}
        counts = json.loads(file.metadata()["counts"])
    return Tokens(corpus.name, corpus.sha256, ids, counts)


def _encode(text, tokenizer):
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int32)


def windows(ids, block):
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
        allowed = f"must be pydocs, or a file or folder of {', '.join(_FORMATS)}"
        raise ParameterError("data", name, allowed)
    named = {split: [] for split in SPLITS}
    loose = []
    for file in files:
        match = [split for split in SPLITS if file.stem.startswith(split[:5])]
        (named[match[0]] if match else loose).extend(_read_file(name, file))
    if any(named.values()) and not loose:
        return named
    return split_documents([*loose, *itertools.chain(*named.values())])


def _read_file(name, file):
    """Documents of one file: rows of a table, or paragraphs of a text."""
    try:
        if file.suffix == ".parquet":
            import pandas

            return pandas.read_parquet(file, columns=["text"])["text"].tolist()
        text = file.read_text("utf-8")
        if "\0" in text:
            raise UnicodeError
        if file.suffix == ".jsonl":
            return [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
    except (UnicodeError, ValueError, KeyError, TypeError, OSError) as error:
        allowed = f"must hold UTF-8 text (in a field named text); {file.name} does not"
        raise ParameterError("data", name, allowed) from error
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
