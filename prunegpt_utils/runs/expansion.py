"""From a study file to its runs: where axes become runs, and where runs get their names."""

import collections
import functools
import graphlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from prunegpt_utils import hub
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import optional_models, parameters, paths, study_files

# Parameters that name another run by its recipe, or by its recipe and seed.
RUN_REFS = (
    "model", "init_from", "teacher", "one_shot_run", "baseline", "reference", "mask_from",
)  # fmt: skip
_MODELS = ("model", "teacher")  # those of them that may name a model instead
_COMPARED = ("one_shot_run", "baseline", "reference")  # of which the record is read
_SAME_MODEL = ("init_from", "one_shot_run", "baseline")  # of several runs, the one of this model
# In which a run agrees with those it stands on, but for the model of a teacher or a reference.
SHARED = ("model", "data", "block_size", "protocol")

_FRACTIONS = {  # in a run's name
    "sparsity": "s", "neuron_sparsity": "n", "head_sparsity": "h", "block_sparsity": "b",
}  # fmt: skip
# Names of runs outlive those of parameters: what these are called in them.
_LABELS = {
    "block_size": "block", "gradient_accumulation_steps": "accumulate", "regrow_decay": "regrow",
    "layer_sparsity": "one_sparsity", "forward_kl": "forward", "reverse_kl": "reverse",
    "hidden_mse": "hidden",
}  # fmt: skip


@dataclass(frozen=True)
class RunSpec:
    """A run to be made: a notebook at some parameters."""

    name: str
    notebook: str
    parameters: dict
    depends_on: tuple = ()  # names of the runs whose models or records it reads
    base_recipe: str = ""  # its recipe without axes
    axes: dict = field(default_factory=dict)  # {parameter: value}, as in its recipe's name

    def as_yaml(self) -> str:
        """The parameters on one line, for `papermill --parameters_yaml`."""
        # not JSON, whose 5e-05 YAML takes for a text
        return yaml.safe_dump(self.parameters, default_flow_style=True, width=float("inf")).strip()


def run_name(values: Mapping) -> str:
    """`<recipe>[-s<percent>][-n…][-h…][-b…]-seed<k>`: weights, neurons, heads, blocks gone."""
    shares = {letter: values.get(key, 0) for key, letter in _FRACTIONS.items()}
    percents = "".join(f"-{letter}{100 * share:g}" for letter, share in shares.items() if share)
    return f"{values['recipe']}{percents}-seed{values['seed']}"


def variant_name(base_recipe: str, axes: Mapping) -> str:
    """What a recipe is called at some values of its axes, such as `gradual-lr0.004`."""
    return "-".join(filter(None, [base_recipe, *(_label(*pair) for pair in axes.items())]))


def _label(key, value):
    """What an axis adds to a name: a text itself, a number behind the parameter's name."""
    # `run_name` takes care of these, or they are no axis of a recipe
    if key in ("recipe", "seed", *_FRACTIONS):
        return ""
    name = _LABELS.get(value, value) if isinstance(value, str) else value
    text = re.sub(r"[^A-Za-z0-9._-]", "-", str(name).replace(":", "of").rpartition("/")[2])
    return text if isinstance(value, str) else f"{_LABELS.get(key, key)}{text}"


def _short_names(texts):
    """{path or hub id: as many of its last parts, joined, as tell it from the others}."""
    parts = {text: [part for part in text.split("/") if part] for text in texts}
    found = {}
    for text, mine in parts.items():
        others = [theirs for other, theirs in parts.items() if other != text]
        counts = range(1, len(mine) + 1)
        unlike = (n for n in counts if all(theirs[-n:] != mine[-n:] for theirs in others))
        found[text] = "-".join(mine[-next(unlike, len(mine)) :])
    return found


@dataclass(frozen=True)
class _Entry:
    """What a study file says of a recipe at once: its parameters, axes as lists."""

    notebook: str
    recipe: str
    declared: list
    given: dict
    optional: bool
    short: dict = field(default_factory=dict)  # {value of an axis that is a text: its short name}

    @functools.cached_property
    def axes(self) -> dict:
        return {key: item for key, item in self.given.items() if item and isinstance(item, list)}

    def has(self, key: str, value: object) -> bool:
        return value in self.axes.get(key, [self.given.get(key)])

    def named(self, point: dict) -> dict:
        """Some values of the axes as names of runs have them: of folders and hub ids the end."""
        short = {key: self.short.get(v) for key, v in point.items() if isinstance(v, str)}
        return {key: short.get(key) or value for key, value in point.items()}

    def at(self, point: dict) -> RunSpec:
        """The run at some values of the axes, but for what it depends on."""
        base, axes = parameters.check("recipe", (self.given | point)["recipe"]), self.named(point)
        given = self.given | point | {"recipe": variant_name(base, axes)}
        values = {key: parameters.check(key, value) for key, value in given.items()}
        values = {key: value for key, value in values.items() if key in self.declared}
        axes = {key: value for key, value in axes.items() if _label(key, value)}
        return RunSpec(run_name(values), self.notebook, values, base_recipe=base, axes=axes)


def _entries(content):
    shared = content.get("parameters") or {}
    made = set().union(*content["notebooks"].values())
    for notebook, group in content["notebooks"].items():
        declared = study_files.declared_parameters(notebook)
        mine = {key: value for key, value in shared.items() if key in declared}
        for recipe, listed in group.items():
            own = study_files.recipe_parameters(recipe)
            common = {"study": content["study"], "seed": 0, "reference": ""} | own
            for ref in common.keys() & {"reference", "one_shot_run"}:
                if not any(common[ref].startswith(other) for other in made):
                    common[ref] = ""  # a study need not make what its recipes are compared with
            # a study's steps are for what trains: zero-shot stays what its name says
            common |= {k: v for k, v in mine.items() if k != "steps" or own.get(k) != 0}
            for entry in study_files.as_list(listed):
                given = common | entry
                optional = given.pop("optional", False)
                given = {key: _as_meant(key, value) for key, value in given.items()}
                yield _Entry(notebook, recipe, declared, given, optional)


def _as_meant(key, value):
    if isinstance(value, list):
        return [parameters.as_meant(key, each) for each in value]
    return parameters.as_meant(key, value)


class _Study:
    """All entries of a study file, which may name one another's runs."""

    def __init__(self, content: dict) -> None:
        entries = list(_entries(content))
        listed = itertools.chain(*(axis for entry in entries for axis in entry.axes.values()))
        short = _short_names({value for value in listed if isinstance(value, str)})
        self.entries = [replace(entry, short=short) for entry in entries]
        self.first = {entry.recipe: entry for entry in reversed(self.entries)}
        self.decided = optional_models.decided(content["study"])

    def points(self) -> Iterator[tuple[_Entry, dict]]:
        """(entry, {axis: value}) of every combination of the axes."""
        for entry in self.entries:
            for values in itertools.product(*entry.axes.values()):
                yield entry, dict(zip(entry.axes, values, strict=True))

    @functools.cached_property
    def variants(self) -> dict:
        """{name of a recipe at values of its axes: its entry, these values}."""
        return {  # the first of a name
            variant_name(str((entry.given | point)["recipe"]), entry.named(point)): (entry, point)
            for entry, point in reversed(list(self.points()))
        }

    def resolve(self, ref: str, values: dict) -> RunSpec | None:
        name = values[ref]
        run = re.fullmatch(r"(.+)-seed(\d{1,9})", name)
        if run and name not in self.first and name not in self.variants:
            name, values = run[1], values | {"seed": int(run[2])}
        if name in self.first:
            like = ("seed", "model") if ref in _SAME_MODEL else ("seed",)  # if there is such a one
            entries = (entry for entry in self.entries if entry.recipe == name)
            entry = max(entries, key=lambda each: [each.has(key, values.get(key)) for key in like])
            axes = entry.axes.items()
            point = {k: values[k] if values.get(k) in axis else axis[0] for k, axis in axes}
        elif name in self.variants:
            entry, point = self.variants[name]
        else:
            return None
        pruned = entry.given.get("sparsity") and ref != "one_shot_run"
        # a pretrained model is one for all seeds of what is made of it
        same = (*(() if ref == "model" else ("seed",)), *(("sparsity",) if pruned else ()))
        return entry.at(point | {key: values[key] for key in same if key in values})

    def reference_problems(self, spec: RunSpec) -> Iterator[str]:
        """Why a run cannot be compared with what its study file says."""
        for ref in filter(spec.parameters.get, _COMPARED):
            name, found = spec.parameters[ref], self.resolve(ref, spec.parameters)
            if found is None:
                yield f"{ref}: {name!r} names no run that this study makes"
            elif found.name == spec.name:
                yield f"{ref}: {name!r} is this run; it must name another"

    def dependencies(self, spec: RunSpec) -> tuple:
        """Names of the runs that the parameters of a run name."""
        p = spec.parameters
        needs = [self.resolve(ref, p) for ref in RUN_REFS if p.get(ref)]
        return tuple(dict.fromkeys(need.name for need in needs if need))

    @functools.cached_property
    def required(self) -> set:
        """Models, and recipes, that are named by what is not optional."""
        given = [
            entry.given.get(ref) for entry in self.entries if not entry.optional for ref in _MODELS
        ]
        return {name for names in given for name in (names if isinstance(names, list) else [names])}

    def optional_models(self, entry: _Entry, spec: RunSpec) -> list[str]:
        """The models that only optional runs need and no run makes."""
        named = [spec.parameters.get(ref) for ref in _MODELS if entry.optional]
        made = self.first.keys() | self.variants.keys()
        return [name for name in named if name and name not in made | self.required]

    def missing_model(self, entry: _Entry, spec: RunSpec) -> str | None:
        """The model for want of which an optional run is not made, if there is one."""
        return next(filter(self.is_left_out, self.optional_models(entry, spec)), None)

    def is_left_out(self, model: str) -> bool:
        """Whether the study does without a model; before it begins, whether that is not here."""
        known = model in self.decided
        return self.decided[model] is not None if known else not hub.is_available(model)


def plan(study: str) -> dict[str, RunSpec]:
    """{name: RunSpec} of a study; a parameter given as a list is an axis.

    What a study file says of all its runs overrides the recipe, and what it says of one run
    overrides both; it may say several things of a recipe, as a list, and each is a variant. Axes
    other than the seed and what is removed become part of the recipe's name, so that every run has
    a name of its own. Every value is checked here, before the first run. Of an `optional` entry,
    the runs that need a model which is not available are left out.

    Raises:
        ParameterError: a bad value, two different runs of one name, or a needed run not planned.
    """
    return plan_of(study_files.load(study), study_files.location(study))


def plan_of(content: dict, place: str) -> dict[str, RunSpec]:
    """`plan` of the content of a study file; `place` names the file in errors."""
    study, runs, problems = _Study(content), {}, []
    for entry, point in study.points():
        try:
            spec = entry.at(point)
            if not study.missing_model(entry, spec) and runs.setdefault(spec.name, spec) != spec:
                allowed = "is planned twice, with different parameters; make one an axis"
                raise ParameterError("run", spec.name, allowed)
        except ParameterError as error:
            problems.append(f"{entry.notebook}: {entry.recipe}: {error}")
    if not problems:
        runs = {n: replace(s, depends_on=study.dependencies(s)) for n, s in runs.items()}
        problems = [f"{n}: {why}" for n, s in runs.items() for why in study.reference_problems(s)]
        problems = problems or list(_dependency_problems(runs))
    if problems:
        raise ParameterError("\n".join(f"{place}: {line}" for line in dict.fromkeys(problems)))
    return runs


def _dependency_problems(runs):
    for spec in runs.values():
        for need in set(spec.depends_on) - set(runs):
            yield f"{spec.name} needs {need}, which the study does not make"
    try:
        graphlib.TopologicalSorter({n: s.depends_on for n, s in runs.items()}).prepare()
    except graphlib.CycleError as error:
        yield f"each of these runs needs the one before it: {', '.join(error.args[1])}"


def resolver(content: dict) -> Callable:
    """A function that returns the run that parameter `ref` of a run names, of one study.

    It takes `ref` and the parameters of the run that asks; None if a model is named instead.

    It is the first variant of its recipe, with the same seed, the same model (but for a teacher, a
    `reference` or a `model`) and, if it is pruned, the same sparsity; the one-shot curve spans all
    sparsities, so there is one of it, and so there is of a `model` for all seeds. Along an axis
    that both have it is the one with the same value, unless `ref` says which: `control-steps400`.
    So it may say which seed, `control-seed0`.
    """
    return _Study(content).resolve


def find(values: dict) -> RunSpec | None:
    """The planned run that has the name of a run at these parameters.

    None if it is not planned, as in a study of the reader's own, made run by run.
    """
    study = values["study"]
    return plan(study).get(run_name(values)) if study_files.exists(study) else None


def decide(study: str) -> None:
    """Look for the models that optional runs need, and write down which the study does without."""
    known = _Study(study_files.load(study))
    specs = [(entry, entry.at(point)) for entry, point in known.points()]
    models = [name for pair in specs for name in known.optional_models(*pair)]
    optional_models.decide(study, dict.fromkeys(models))


def missing_models(study: str) -> dict[str, str]:
    """{recipe: model that it needs} of the optional runs that the study does without."""
    known = _Study(study_files.load_or_empty(study))
    specs = [(entry, entry.at(point)) for entry, point in known.points()]
    found = {spec.parameters["recipe"]: known.missing_model(entry, spec) for entry, spec in specs}
    return {recipe: model for recipe, model in found.items() if model}


def context(study: str, folder: Path | None = None) -> dict:
    """What a table shows beside the records; nothing for a study of the reader's own.

    Args:
        folder: of the records; None takes those that `paths.records_folder` names.

    Returns:
        dict: "published", {recipe: perplexity} as the study file quotes it; "missing", {recipe:
        why a row is not there, or not of all runs}; "specs", {recipe: (base recipe, axes)}.
    """
    content = study_files.load_or_empty(study)
    specs = {spec.name: spec for spec in (e.at(point) for e, point in _Study(content).points())}
    recipes = {name: spec.parameters["recipe"] for name, spec in specs.items()}
    there = {path.stem for path in (folder or paths.records_folder(study)).glob("*.json")}
    of = collections.Counter(recipes.values())
    lost = collections.Counter(recipe for name, recipe in recipes.items() if name not in there)
    missing = {recipe: f"needs {model}" for recipe, model in missing_models(study).items()}
    for recipe, number in lost.items():
        missing.setdefault(recipe, f"{number} of {of[recipe]} missing")
    labels = {recipes[name]: (spec.base_recipe, spec.axes) for name, spec in specs.items()}
    return {"published": content.get("published") or {}, "missing": missing, "specs": labels}
