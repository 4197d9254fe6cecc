"""A study with other parameters, as a study of its own."""

import json
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import expansion, parameters, paths, study_files, yaml_files


def override(study: str, name: str, changes: str) -> Path:
    """Write a study with some parameters changed, and return the Path of its `study.yaml`.

    A change of a parameter reaches every run of the study that has it, but leaves alone what a run
    has switched off: a run of 0 steps stays one. Behind a recipe's name and a dot it reaches the
    runs of that recipe alone, and switches on what was off.

    Args:
        name: what the changed study is called: a study folder never mixes parameters.
        changes: text such as "steps=200 gradual.sparsity=0.8,0.9"; several values are an axis.

    Raises:
        ParameterError: the name is empty or taken, or a change is not allowed or changes nothing.
    """
    if not name:
        raise ParameterError("NEW", name, "must name the new study; a study keeps its parameters")
    parameters.check("study", name)
    content = study_files.load(study)
    for group in content["notebooks"].values():
        group.update({recipe: study_files.as_list(entries) for recipe, entries in group.items()})
    for change in changes.split():
        before = expansion.plan_of(content, study)
        _apply(content, change)
        if expansion.plan_of(content, f"SET {change}") == before:
            raise ParameterError("SET", change, f"changes no run of {study}")
    planned = expansion.plan_of(content, study).values()
    sets_steps = " steps=" in f" {changes}".replace(".", " ")  # of all recipes, or of one
    if sets_steps and any(run.parameters.get("epochs") for run in planned):
        raise ParameterError("SET", changes, "sets steps where epochs are counted; add epochs=0")
    content = json.loads(json.dumps(content)) | {"study": name}  # plain, no part shared
    path = paths.study_folder(name) / "study.yaml"
    shipped = (paths.ROOT / "studies" / f"{name}.yaml").exists()
    once_more = path.exists() and not shipped and study_files.load(name) == content
    if not once_more and (shipped or any(path.parent.glob("*"))):
        raise ParameterError("NEW", name, "is the name of another study; choose a new one")
    yaml_files.write(path, content)
    return path


def _apply(content, change):
    """Make one change, `[recipe.]parameter=value[,value]`, to the content of a study file."""
    target, equals, text = change.partition("=")
    recipe, _, key = target.rpartition(".")
    if not equals or not text:
        raise ParameterError("SET", change, "must be parameter=value, or recipe.parameter=value")
    values = [parameters.from_text(key, part) for part in text.split(",")]
    value = values if len(values) > 1 else values[0]
    groups = content["notebooks"].values()
    known = {name for group in groups for name in group}
    if recipe in study_files.RENAMED_RECIPES:
        raise ParameterError("SET", change, f"{recipe} {study_files.unknown_recipe(recipe, known)}")
    if recipe and recipe not in known:
        raise ParameterError("SET", change, f"must name a recipe: {', '.join(sorted(known))}")
    if not recipe:
        content["parameters"] = (content.get("parameters") or {}) | {key: value}
    for name, entries in (pair for group in groups for pair in group.items()):
        for entry in entries:
            has = study_files.recipe_parameters(name) | entry
            off = key in has and not has[key] and key != "seed"
            if recipe == name or (not recipe and key in entry and not off):
                entry[key] = value
            elif not recipe and off:
                entry[key] = has[key]
