"""By which code a result was made: a hash of each module of this package that determines it.

What counts is the code as Python sees it: not its docstrings, comments, layout or file names, nor
the version of Python that reads it; a folder of the core, such as `tasks`, counts as one module,
with its task files. What does not count is plumbing, which changes no number (`PLUMBING`), and
other packages: their versions stand in every
record, and a record made with another one is kept, and named.
"""

import ast
import functools
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

PLUMBING = (
    "errors", "files", "hub", "hub_client", "hub_files", "progress", "provenance", "report", "runs",
)  # fmt: skip
_PACKAGE = Path(__file__).parent


def module_hashes(source: str, without: Collection[str] = ()) -> dict[str, str]:
    """{module: hash} of the core modules that some code imports, by itself or through others.

    Some may be left `without`, and what only they import. The files are read when they are first
    asked for, and hold for the life of the process: it runs the code that it has imported.
    """
    found, left = {}, [*_imported(source)]
    while left:
        name = left.pop()
        if name not in found and name not in without:
            found[name], more = _module(name)
            left += more
    return dict(sorted(found.items()))


@functools.cache
def code_hash(source: str) -> str:
    """Hash of Python code, blind to docstrings, comments and layout: 16 hexadecimal digits."""
    return _hash(ast.parse(source))


@functools.cache
def _imported(source):
    return tuple(_imports(ast.parse(source)))


@functools.cache
def _module(name):
    file, folder = _PACKAGE / f"{name}.py", _PACKAGE / name
    files = [file] if file.exists() else sorted(folder.glob("*.py"))
    trees = [ast.parse(each.read_text("utf-8")) for each in files]
    task_files = [each.read_text("utf-8") for each in sorted(folder.glob("*.yaml"))]
    found = sorted(set().union(*map(_imports, trees)))
    return _hash(*trees, *task_files), found


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
            places = _PACKAGE / f"{module}.py", _PACKAGE / module / "__init__.py"
            own = package == _PACKAGE.name and module and any(place.exists() for place in places)
            if own and module not in PLUMBING:
                yield module


def _hash(*parts):
    """Hash of syntax trees and texts."""
    plain = "".join(repr(part if isinstance(part, str) else _plain(part)) for part in parts)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


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
