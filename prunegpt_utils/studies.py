"""What to run: a study file and its recipes become runs; a run that another needs gets made."""

import hashlib
import itertools
import json
from dataclasses import dataclass

import yaml

from prunegpt_utils import parameters, records
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

    def as_yaml(self):
        """The parameters on one line, for `papermill --parameters_yaml`."""
        # not JSON, whose 5e-05 YAML takes for a text
        flow = {"default_flow_style": True, "width": float("inf")}
        return yaml.safe_dump(self.parameters, **flow).strip()


def load(study):
    """The study file `studies/<study>.yaml` as a dict."""
    return _read("study", study, records.ROOT / "studies")


def recipe_parameters(recipe):
    """Parameters of `studies/recipes/<recipe>.yaml`."""
    return _read("recipe", recipe, records.ROOT / "studies" / "recipes")


def _read(kind, name, folder):
    files = {file.stem: file for file in folder.glob("*.yaml")}
    if name not in files:
        raise ParameterError(kind, name, f"must be one of {', '.join(sorted(files))}")
    return yaml.safe_load(files[name].read_text("utf-8"))


def plan(study):
    """{name: Planned} of a study; a parameter given as a list is an axis.

    What a study file says of all its runs overrides the recipe, and what it says of one run
    overrides both. Every value is checked here, before the first run.
    """
    content, runs = load(study), {}
    absent = _absent(content)
    for notebook, entries in content["notebooks"].items():
        for recipe in entries:
            if recipe in absent:
                continue
            given = _merged(content, recipe)
            axes = {key: value for key, value in given.items() if isinstance(value, list)}
            for point in itertools.product(*axes.values()):
                run = _planned(content, notebook, given | dict(zip(axes, point, strict=True)))
                runs[run.name] = run
    return runs


def context(study):
    """What a table shows beside the records: {"published": ..., "missing": ...}.

    published is {recipe: perplexity}, as the study file quotes it; missing is {recipe: model that
    an optional row needs}. A study of the reader's own has neither.
    """
    try:
        content = load(study)
    except ParameterError:
        return {"published": {}, "missing": {}}
    return {"published": content.get("published") or {}, "missing": _absent(content)}


def _absent(content):
    """{recipe: model} of the optional runs whose model is not to be had."""
    absent = {}
    for recipe in itertools.chain(*content["notebooks"].values()):
        given = _merged(content, recipe, keep_optional=True)
        named = [given.get("model"), given.get("teacher")]
        models = [name for name in named if name and not _notebook_of(content, name)]
        needed = [name for name in models if given.get("optional") and not at_hand(name)]
        if needed:
            absent[recipe] = needed[0]
    return absent


def _notebook_of(content, recipe):
    """The notebook under which a study lists `recipe`; None if it does not."""
    return next((book for book, group in content["notebooks"].items() if recipe in group), None)


def _merged(content, recipe, keep_optional=False):
    """Parameters of a recipe in a study, axes still as lists."""
    entry = dict(content["notebooks"][_notebook_of(content, recipe)][recipe] or {})
    if not keep_optional:
        entry.pop("optional", None)
    shared = content.get("parameters") or {}
    return {"study": content["study"], "seed": 0, **recipe_parameters(recipe), **shared, **entry}


def _planned(content, notebook, values):
    declared = declared_parameters(notebook)
    values = {key: parameters.check(key, value) for key, value in values.items()}
    values = {key: value for key, value in values.items() if key in declared}
    needs = [_linked(content, link, values) for link in LINKS if values.get(link)]
    needs = tuple(dict.fromkeys(run.name for run in needs if run))
    return Planned(records.run_name(values), notebook, values, needs)


def _linked(content, link, values):
    """The run that parameter `link` of a run names; None if it names a model instead.

    It has the same seed and, if it is pruned, the same sparsity; the one-shot curve spans all
    sparsities, so there is one of it.
    """
    recipe = values[link]
    notebook = _notebook_of(content, recipe)
    if notebook is None:
        return None
    theirs = _merged(content, recipe) | {"seed": values["seed"]}
    if theirs.get("sparsity") and link != "curve":
        theirs["sparsity"] = values["sparsity"]
    return _planned(content, notebook, theirs)


def declared_parameters(notebook):
    """Names in the cell tagged `parameters` of `notebooks/<notebook>.ipynb`."""
    return parameters.assigned(_cells(notebook, tag="parameters")[0])


def code_hash(notebook):
    """Hash of a notebook's code, blind to its outputs and prose."""
    return hashlib.sha256("\n".join(_cells(notebook)).encode()).hexdigest()[:16]


def _cells(notebook, tag=None):
    path = records.ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if not tag or tag in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in tagged]


def require(link, p):
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
        _execute(run, folder)
    record = records.read(path)
    for key in SHARED:
        theirs, ours = record["parameters"].get(key), p.get(key)
        if ours != theirs and None not in (ours, theirs):
            allowed = f"differs from {theirs!r} of {run.name}, on which this run stands"
            raise ParameterError(key, ours, f"{allowed}; choose another study name")
    return record


def _execute(run, folder):
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
            source, target, run.parameters, kernel_name="python3", progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "ParameterError":
            raise ParameterError(error.evalue) from error
        raise RuntimeError(f"{run.name} failed: {error.ename}: {error.evalue}") from error


def model_of(link, p):
    """The model that a link names, or `model` if it is empty: a folder, or a name to load."""
    link = link if p[link] else "model"
    record = require(link, p)
    return records.study_folder(p["study"]) / "models" / record["run"] if record else p[link]
