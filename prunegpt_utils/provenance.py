"""By which code a result was made: a hash of each module of this package that determines it.

What counts is the code as Python sees it: not its docstrings, comments, layout or file names, nor
the version of Python that reads it. What does not count is plumbing, which changes no number
(`PLUMBING`, with all of `runs` and `report`), and other packages: their versions stand in every
record, and a record made with another one is kept, and named.
"""

import ast
import functools
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

PLUMBING = ("errors", "files", "hub", "hub_client", "hub_files", "progress", "provenance")
_PACKAGE = Path(__file__).parent


def module_hashes(source: str, without: Collection[str] = ()) -> dict[str, str]:
    """{module: hash} of the core modules that some code imports, by itself or through others.

    Some may be left `without`, and what only they import. The files are read when they are first
    asked for, and hold for the life of the process: it runs the code that it has imported.
    """
    found, left = {}, list(_imports(ast.parse(source)))
    while left:
        name = left.pop()
        if name not in found and name not in without:
            found[name], more = _module(name)
            left += more
    return dict(sorted(found.items()))


def code_hash(source: str) -> str:
    """Hash of Python code, blind to docstrings, comments and layout: 16 hexadecimal digits."""
    return _hash(ast.parse(source))


@functools.cache
def _module(name):
    tree = ast.parse((_PACKAGE / f"{name}.py").read_text("utf-8"))
    return _hash(tree), sorted(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names of the core modules, but for plumbing, that code imports anywhere."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            module = rest.partition(".")[0]
            own = package == _PACKAGE.name and (_PACKAGE / f"{module}.py").exists()
            if own and module not in PLUMBING:
                yield module


def _hash(tree):
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16]


def _plain(node):
    """A syntax tree as nested lists, which `ast.dump` writes in another way for each Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        documented = ast.get_docstring(node, clean=False) is not None
        fields["body"] = node.body[1 if documented else 0 :]
    given = {name: value for name, value in fields.items() if value not in (None, [])}
    return [type(node).__name__, *([name, _plain(value)] for name, value in given.items())]
