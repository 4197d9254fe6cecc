"""What to run: a study file and its recipes become runs; a run that another needs gets made."""

import collections
import difflib
import functools
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from prunegpt_utils import parameters, records, strict_yaml
from prunegpt_utils.models import at_hand, processes
from prunegpt_utils.parameters import ParameterError

# Parameters that name another run by its recipe.
LINKS = ("model", "start", "teacher", "curve", "untaught")
# Parameters in which all runs of a study agree, so that one may stand on another.
SHARED = ("model", "data", "block", "protocol")


@dataclass(frozen=True)
class Planned:
    """A run to be made: its notebook, papermill parameters, and the runs it stands on."""

    name: str
    notebook: str
    parameters: dict
    needs: tuple

    def as_yaml(self) -> str:
        """The parameters on one line, for `papermill --parameters_yaml`."""
        # not JSON, whose 5e-05 YAML takes for a text
        flow = {"default_flow_style": True, "width": float("inf")}
        return yaml.safe_dump(self.parameters, **flow).strip()


def load(study: str) -> dict:
    """The study file as a dict, its outline checked.

    It is `studies/<study>.yaml`, or `study.yaml` in the folder to which the study writes.

    Raises:
        ParameterError: no such file, not a mapping, a part that is unknown or of the wrong kind,
            a notebook or recipe that does not exist.
    """
    content = _read("study", study, _study_files())
    problems = list(_problems(content, study, _place(study)))
    if problems:
        raise ParameterError("\n".join(problems))
    return content


def _study_files():
    """{name: Path} of all study files; the project's own come before others of that name."""
    folders = records.study_folder("x").parent.glob("*/study.yaml")
    shipped = (records.ROOT / "studies").glob("*.yaml")
    return {path.parent.name: path for path in folders} | {path.stem: path for path in shipped}


def _place(study):
    """How a study file is named in errors."""
    own = records.study_folder(study) / "study.yaml"
    return str(own) if _study_files().get(study) == own else f"studies/{study}.yaml"


_PARTS = {"study": str, "results": str, "parameters": dict, "notebooks": dict, "published": dict}


def _problems(content, study, place):
    """What is wrong with the outline of a study file, a line each, with its place."""
    for part, value in content.items():
        if part not in _PARTS:
            yield f"{place}: {part!r} is no part of a study; it has: {', '.join(_PARTS)}"
        elif not isinstance(value, _PARTS[part]):
            yield f"{place}: {part}: {value!r} must be a {_PARTS[part].__name__}"
    if content.get("study") != study:
        yield f"{place}: study: {content.get('study')!r} must be the name of the file, {study!r}"
    books = {path.stem for path in (records.ROOT / "notebooks").glob("*.ipynb")}
    listed = content.get("notebooks")
    if not listed:
        yield f"{place}: notebooks: must list at least one"
    for book, group in listed.items() if isinstance(listed, dict) else ():
        if book not in books:
            yield f"{place}: notebooks: {book!r} must be one of {', '.join(sorted(books))}"
        elif not isinstance(group, dict):
            yield f"{place}: {book}: {group!r} must name recipes, each with a colon"
        else:
            declared = declared_parameters(book)
            yield from (f"{place}: {book}: {line}" for line in _entry_problems(group, declared))


def _entry_problems(group, declared):
    known = {path.stem for path in (records.ROOT / "studies" / "recipes").glob("*.yaml")}
    for recipe, entries in group.items():
        if recipe not in known:
            yield f"{recipe!r} is no recipe{_hint(recipe, known)}"
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, dict | None):
                yield f"{recipe}: {entry!r} must be parameters, such as {{sparsity: 0.9}}"
            for key in (
                set(entry or ()) - {"optional", *declared} if isinstance(entry, dict) else ()
            ):
                yield f"{recipe}: {key!r} is no parameter of this notebook{_hint(key, declared)}"


def _hint(name, known):
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def recipe_parameters(recipe: str) -> dict:
    """Parameters of `studies/recipes/<recipe>.yaml`."""
    folder = records.ROOT / "studies" / "recipes"
    return _read("recipe", recipe, {file.stem: file for file in folder.glob("*.yaml")})


def _read(kind, name, files):
    if name not in files:
        raise ParameterError(kind, name, f"must be one of {', '.join(sorted(files))}")
    return strict_yaml.read(files[name], kind)


def plan(study: str) -> dict[str, Planned]:
    """{name: Planned} of a study; a parameter given as a list is an axis.

    What a study file says of all its runs overrides the recipe, and what it says of one run
    overrides both; it may say several things of a recipe, as a list, and each is a variant. Axes
    other than the seed and what is removed become part of the recipe's name, so that every run has
    a name of its own. Every value is checked here, before the first run.

    Raises:
        ParameterError: a value that is not allowed, two runs of one name that differ, or a run
            that stands on one which is not planned.
    """
    return plan_of(load(study), _place(study))


def plan_of(content: dict, place: str) -> dict[str, Planned]:
    """`plan` of the content of a study file; `place` names the file in errors."""
    runs, problems = {}, {}
    absent = _absent(content)
    for notebook, recipe in _listed(content):
        for point in [] if recipe in absent else _all_points(content, recipe):
            try:
                run = _planned(content, notebook, point)
                if runs.setdefault(run.name, run) != run:
                    allowed = "is planned twice, with different parameters; make one an axis"
                    raise ParameterError("run", run.name, allowed)
            except ParameterError as error:
                problems[f"{place}: {notebook}: {recipe}: {error}"] = error
    for run in runs.values() if not problems else ():
        for need in set(run.needs) - set(runs):
            problems[f"{place}: {run.name} stands on {need}, which the study does not make"] = need
    if problems:
        raise ParameterError("\n".join(problems))
    return runs


def _listed(content):
    """(notebook, recipe) of every entry of a study."""
    return [(book, recipe) for book, group in content["notebooks"].items() for recipe in group]


def _all_points(content, recipe):
    return [point for given in _variants(content, recipe) for point in _points(given)]


def _points(given):
    """Every combination of the axes, each with the recipe's name to go by."""
    axes = _axes(given)
    for values in itertools.product(*axes.values()):
        yield _named(given, dict(zip(axes, values, strict=True)))


def _axes(given):
    return {key: value for key, value in given.items() if isinstance(value, list)}


def _named(given, point):
    parts = [given["recipe"], *(_label(*pair) for pair in point.items())]
    return given | point | {"recipe": "-".join(filter(None, parts))}


def _label(key, value):
    """What an axis adds to a name: text by itself, a number after the parameter's name."""
    if key == "seed" or key in records.FRACTIONS:  # `records.run_name` has these
        return ""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", str(value).replace(":", "of").rpartition("/")[2])
    return text if isinstance(value, str) else f"{key}{text}"


def results_notebook(study: str) -> str:
    """The notebook that reads the records of a finished study and draws its figures."""
    return _load_or_nothing(study).get("results", "05_results")


def context(study: str) -> dict:
    """What a table shows beside the records: {"published": ..., "missing": ...}.

    published is {recipe: perplexity}, as the study file quotes it; missing is {recipe: why a row
    is not there, or not of all runs}. A study of the reader's own has neither.
    """
    content = _load_or_nothing(study)
    missing = {recipe: f"needs {model}" for recipe, model in _absent(content).items()}
    there = {path.stem for path in records.records_folder(study).glob("*.json")}
    planned = plan_of(content, study).items()
    of = collections.Counter(run.parameters["recipe"] for _, run in planned)
    lost = collections.Counter(
        run.parameters["recipe"] for name, run in planned if name not in there
    )
    missing |= {recipe: f"{count} of {of[recipe]} missing" for recipe, count in lost.items()}
    return {"published": content.get("published") or {}, "missing": missing}


def left_out(study: str) -> dict[str, str]:
    """{recipe: model that it needs} of the optional runs that cannot be made here."""
    return _absent(_load_or_nothing(study))


def _load_or_nothing(study):
    try:
        return load(study)
    except ParameterError:  # of the reader's own, run by run
        return {"notebooks": {}}


def _absent(content):
    """{recipe: model} of the optional runs whose model is not to be had."""
    absent = {}
    for recipe in itertools.chain(*content["notebooks"].values()):
        given = _variants(content, recipe, keep_optional=True)[0]
        named = [given.get(link) for link in ("model", "teacher")]
        named = [
            name for names in named for name in (names if isinstance(names, list) else [names])
        ]
        models = [name for name in named if name and not _variant_of(content, str(name))]
        needed = [name for name in models if given.get("optional") and not at_hand(name)]
        if needed:
            absent[recipe] = needed[0]
    return absent


def _variant_of(content, name):
    """(recipe, its parameters) that a link names; None if it names a model instead.

    By the recipe's own name it is the first variant, with axes as lists; by one with values of
    axes, such as `control-steps400`, the run that has them.
    """
    listed = [recipe for _, recipe in _listed(content)]
    if name in listed:
        return name, _variants(content, name)[0]
    near = [recipe for recipe in listed if name.startswith(f"{recipe}-")]
    points = ((recipe, point) for recipe in near for point in _all_points(content, recipe))
    return next(((recipe, point) for recipe, point in points if point["recipe"] == name), None)


def _notebook_of(content, recipe):
    """The notebook under which a study lists `recipe`."""
    return next(book for book, group in content["notebooks"].items() if recipe in group)


def _variants(content, recipe, keep_optional=False):
    """Parameters of a recipe in a study, once a variant, axes still as lists."""
    notebook = _notebook_of(content, recipe)
    entries = content["notebooks"][notebook][recipe] or {}
    undeclared = set(parameters.PARAMETERS) - set(declared_parameters(notebook))
    shared = content.get("parameters") or {}
    shared = {key: value for key, value in shared.items() if key not in undeclared}
    common = {"study": content["study"], "seed": 0, **recipe_parameters(recipe), **shared}
    dropped = () if keep_optional else ("optional",)
    return [
        common | {key: value for key, value in entry.items() if key not in dropped}
        for entry in (entries if isinstance(entries, list) else [entries])
    ]


def _planned(content, notebook, values):
    declared = declared_parameters(notebook)
    values = {key: parameters.check(key, value) for key, value in values.items()}
    values = {key: value for key, value in values.items() if key in declared}
    needs = [_linked(content, link, values) for link in LINKS if values.get(link)]
    needs = tuple(dict.fromkeys(run.name for run in needs if run))
    return Planned(records.run_name(values), notebook, values, needs)


def _linked(content, link, values):
    """The run that parameter `link` of a run names; None if it names a model instead.

    It is the first variant of its recipe, with the same seed and, if it is pruned, the same
    sparsity; the one-shot curve spans all sparsities, so there is one of it. Along an axis that
    both have it is the one with the same value, unless the link says which: `control-steps400`.
    """
    found = _variant_of(content, values[link])
    if found is None:
        return None
    recipe, given = found
    point = {
        key: values[key] if values.get(key) in axis else axis[0]
        for key, axis in _axes(given).items()
    }
    if given.get("sparsity") and link != "curve":
        point["sparsity"] = values["sparsity"]
    run = _named(given, point | {"seed": values["seed"]})
    return _planned(content, _notebook_of(content, recipe), run)


def declared_parameters(notebook: str) -> list[str]:
    """Names in the cell tagged `parameters` of `notebooks/<notebook>.ipynb`."""
    return parameters.assigned(_cells(notebook, tag="parameters")[0])


def code_hash(notebook: str) -> str:
    """Hash of a notebook's code, blind to its outputs and prose."""
    return hashlib.sha256("\n".join(_cells(notebook)).encode()).hexdigest()[:16]


def _cells(notebook, tag=None):
    path = records.ROOT / "notebooks" / f"{notebook}.ipynb"
    return _cells_of(path, path.stat().st_mtime_ns, tag)


@functools.cache
def _cells_of(path, _changed, tag):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if not tag or tag in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in tagged]


def require(link: str, p: dict) -> dict | None:
    """Record of the run that parameter `link` names; a notebook makes it if it is not there yet.

    Args:
        link: one of `LINKS`.
        p: checked parameters of the run that asks.

    Returns:
        dict: the record, or None if the parameter names no run. The model of the run lies in the
        study's folder under models/<run>.

    Raises:
        ParameterError: the run was made with another model, text or block.
    """
    try:
        content = load(p["study"])
    except ParameterError:  # a study of the reader's own: made like the default one
        content = load("pydocs") | {"study": p["study"]}
        content["parameters"] = {
            key: p[key] for key in (*SHARED, "batch", "accumulate") if key in p
        }
    run = _linked(content, link, p)
    if run is None:
        return None
    folder = records.study_folder(p["study"])
    path = folder / "records" / f"{run.name}.json"
    if not path.exists():
        execute(run, folder)
    record = records.read(path)
    for key in SHARED:
        theirs, ours = record["parameters"].get(key), p.get(key)
        if ours != theirs and None not in (ours, theirs):
            allowed = f"differs from {theirs!r} of {run.name}, on which this run stands"
            raise ParameterError(key, ours, f"{allowed}; choose another study name")
    return record


def execute(run: Planned, folder: Path) -> None:
    """Run a notebook in a kernel of its own, exactly as a study would."""
    import papermill

    if processes().num_processes > 1:
        allowed = "must be there before a run on several processes that stands on it"
        raise ParameterError("run", run.name, allowed)
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    print(f"{run.name} is not there yet; {run.notebook} makes it, once")
    source = records.ROOT / "notebooks" / f"{run.notebook}.ipynb"
    target = folder / "notebooks" / f"{run.name}.ipynb"
    try:
        papermill.execute_notebook(
            source, target, run.parameters, kernel_name="python3", progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if error.ename == "ParameterError":
            raise ParameterError(error.evalue) from error
        raise RuntimeError(f"{run.name} failed: {error.ename}: {error.evalue}") from error


def model_of(link: str, p: dict) -> str | Path:
    """The model that a link names, or `model` if it is empty: a folder, or a name to load."""
    link = link if p[link] else "model"
    record = require(link, p)
    return records.study_folder(p["study"]) / "models" / record["run"] if record else p[link]
