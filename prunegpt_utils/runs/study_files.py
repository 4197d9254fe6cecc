"""Study files, recipes and notebooks as files: read, and checked but for the values in them."""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.provenance import code_hash, module_hashes
from prunegpt_utils.runs import parameters, paths, yaml_files

_SCOPES = {
    "random": "uniform", "magnitude": "global", "first-order": "global", "fisher": "global",
    "wanda": "per-row", "sparsegpt": "uniform",
}  # fmt: skip
RENAMED_RECIPES = {  # old name -> what a study file says instead
    "taught-by-zero-shot": "gradual-distilled: {teacher: [zero-shot]}",
    "taught-by-dense": "gradual-distilled: {teacher: [dense]}",
    "taught-by-xl": "gradual-distilled: {teacher: [gpt2-xl], optional: true}",
} | {f"retrained-{c}": f"retrained: {{criterion: [{c}], scope: {s}}}" for c, s in _SCOPES.items()}
_PARTS = {
    "study": str, "results": str, "pretrained": list, "parameters": dict, "notebooks": dict,
    "published": dict,
}  # fmt: skip


def load(study: str) -> dict:
    """The study file as a dict, its outline checked.

    It is `studies/<study>.yaml`, or `study.yaml` in the folder to which the study writes.

    Raises:
        ParameterError: no such file, no mapping, an unknown or wrong part, notebook or recipe.
    """
    content = _read("study", study, _study_files())
    if "study" in content:
        content["study"] = parameters.as_meant("study", content["study"])
    if problems := [f"{location(study)}: {line}" for line in _problems(content, study)]:
        raise ParameterError("\n".join(problems))
    return content


def load_or_empty(study: str) -> dict:
    """The same, or a study without runs if it is one of the reader's own, made run by run."""
    return load(study) if exists(study) else {"study": study, "notebooks": {}}


def exists(study: str) -> bool:
    """Whether there is a study file of this name, right or wrong."""
    return study in _study_files()


def location(study: str) -> str:
    """How errors name a study file."""
    own = paths.study_folder(study) / "study.yaml"
    return str(own) if _study_files().get(study) == own else f"studies/{study}.yaml"


def recipe_parameters(recipe: str) -> dict:
    """Parameters of `studies/recipes/<recipe>.yaml`."""
    return _read("recipe", recipe, _recipe_files())


def results_notebook(study: str) -> str:
    """The notebook that reads the records of a finished study and draws its figures."""
    return load_or_empty(study).get("results", "05_results")


def unknown_recipe(name: str, known: Iterable[str]) -> str:
    """Why a recipe is refused: it is written in another way now, or it is none of the known."""
    if name in RENAMED_RECIPES:
        return f"is written as `{RENAMED_RECIPES[name]}` now"
    return f"is no recipe{parameters.hint(name, known)}"


def as_list(entries: dict | list | None) -> list[dict]:
    """What a study file says of a recipe, once or as a list, as a list of copies."""
    return [dict(entry or {}) for entry in (entries if isinstance(entries, list) else [entries])]


def _study_files():
    """{name: Path} of all study files; the project's own come before others of that name."""
    folders = paths.study_folder("x").parent.glob("*/study.yaml")
    shipped = (paths.ROOT / "studies").glob("*.yaml")
    return {path.parent.name: path for path in folders} | {path.stem: path for path in shipped}


def _recipe_files():
    return {path.stem: path for path in (paths.ROOT / "studies" / "recipes").glob("*.yaml")}


def _read(kind, name, files):
    if name not in files:
        raise ParameterError(kind, name, f"must be one of {', '.join(sorted(files))}")
    return yaml_files.read(files[name], kind)


def _problems(content: dict, study: str) -> Iterator[str]:
    """What is wrong with the outline of a study file, a line each."""
    sound = {part: kind() for part, kind in _PARTS.items()}
    for part, value in content.items():
        if part not in _PARTS:
            yield f"{part!r} is no part of a study; it has: {', '.join(_PARTS)}"
        elif not isinstance(value, _PARTS[part]):
            yield f"{part}: {value!r} must be a {_PARTS[part].__name__}"
        else:
            sound[part] = value
    if content.get("study") != study:
        yield f"study: {content.get('study')!r} must be the name of the file, {study!r}"
    for name, value in sound["parameters"].items():
        if name not in parameters.PARAMETERS:
            complaint = parameters.unknown(name, parameters.PARAMETERS, "is not a parameter")
            yield f"parameters: {name}: {value!r} {complaint}"
    yield from _known_notebook("results", content.get("results"))
    for other in sound["pretrained"]:
        if not exists(str(other)):
            yield f"pretrained: {other!r} must be a study"
    for recipe, value in sound["published"].items():
        if type(value) not in (int, float):
            yield f"published: {recipe}: {value!r} must be a perplexity"
    if not content.get("notebooks"):
        yield "notebooks: must list at least one"
    for notebook, group in sound["notebooks"].items():
        yield from _notebook_problems(notebook, group)


def _known_notebook(part, notebook):
    known = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    if isinstance(notebook, str) and notebook not in known:
        yield f"{part}: {notebook!r} must be one of {', '.join(sorted(known))}"


def _notebook_problems(notebook, group):
    if problems := list(_known_notebook("notebooks", str(notebook))):
        yield from problems
    elif not isinstance(group, dict):
        yield f"{notebook}: {group!r} must name recipes, each with a colon"
    else:
        recipes, declared = _recipe_files(), declared_parameters(notebook)
        for recipe, entries in group.items():
            if recipe not in recipes:
                yield f"{notebook}: {recipe!r} {unknown_recipe(recipe, recipes)}"
            for entry in entries if isinstance(entries, list) else [entries]:
                for line in _entry_problems(entry, declared):
                    yield f"{notebook}: {recipe}: {line}"


def _entry_problems(entry, declared):
    if not isinstance(entry, dict | None):
        yield f"{entry!r} must be parameters, such as {{sparsity: 0.9}}"
    for key in entry if isinstance(entry, dict) else ():
        if key == "optional" and not isinstance(entry[key], bool):
            yield f"optional: {entry[key]!r} must be true or false"
        elif key not in ("optional", *declared):
            yield f"{key!r} {parameters.unknown(key, declared, 'is no parameter of this notebook')}"


def declared_parameters(notebook: str) -> list[str]:
    """Names in the cell tagged `parameters` of `notebooks/<notebook>.ipynb`."""
    return list(default_parameters(notebook))


def default_parameters(notebook: str) -> dict:
    """{name: value} of that cell."""
    return parameters.assigned(_cells(notebook, tag="parameters")[0])


def code_of(notebook: str) -> dict[str, str]:
    """{module: hash} of the code that determines the outcome of a notebook; its own: `notebook`.

    Empty for a notebook that is not one of the project's. See `provenance`.
    """
    if not path_of(notebook).exists():
        return {}
    source = "\n".join(_cells(notebook))
    return {"notebook": code_hash(source), **module_hashes(source)}


def path_of(notebook: str) -> Path:
    """Where a notebook of the project is."""
    return paths.ROOT / "notebooks" / f"{notebook}.ipynb"


def headings(notebook: str) -> dict[str, str]:
    """{code of a cell: the heading above it} of a notebook of the project."""
    found, heading = {}, ""
    for cell in _notebook(notebook):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)", source, re.M) or [heading])[-1]
        else:
            found[source] = heading
    return found


def _cells(notebook, tag=None):
    code = [cell for cell in _notebook(notebook) if cell["cell_type"] == "code"]
    return ["".join(c["source"]) for c in code if tag in (None, *c["metadata"].get("tags", []))]


def _notebook(notebook):
    path = path_of(notebook)
    return _read_notebook(path, path.stat().st_mtime_ns) if path.exists() else []


@functools.cache
def _read_notebook(path, _changed):
    try:
        return json.loads(path.read_text("utf-8"))["cells"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ParameterError("notebook", path.name, "is damaged: it is no notebook") from error
