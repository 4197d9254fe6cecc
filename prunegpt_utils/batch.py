"""Start studies: with other parameters, one start at a time in a folder, a summary at the end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from prunegpt_utils import forecast, locks, parameters, records, studies
from prunegpt_utils.parameters import ParameterError


def derive(study: str, name: str, changes: str) -> Path:
    """Write the study file of a study with some parameters changed, in a folder of its own.

    A change of a parameter reaches every run of the study that has it, but leaves alone what a run
    has switched off: a run of 0 steps stays one. Behind a recipe's name and a dot it reaches the
    runs of that recipe alone, and switches on what was off.

    Args:
        study: name of the study to change.
        name: what the changed study is called: a study folder never mixes parameters.
        changes: text such as "steps=200 gradual.sparsity=0.8,0.9"; several values are an axis.

    Returns:
        Path of `study.yaml` in the folder of the new study.

    Raises:
        ParameterError: the name is empty or taken, or a change is not allowed or changes nothing.
    """
    if not name:
        raise ParameterError("NEW", name, "must name the new study; a study keeps its parameters")
    parameters.check("study", name)
    content = studies.load(study)
    content["notebooks"] = {
        book: {recipe: _listed(entries) for recipe, entries in group.items()}
        for book, group in content["notebooks"].items()
    }
    for change in changes.split():
        before = studies.plan_of(content, study)
        _apply(content, change)
        if studies.plan_of(content, f"SET {change}") == before:
            raise ParameterError("SET", change, f"changes no run of {study}")
    content = json.loads(json.dumps(content)) | {"study": name}  # plain, no part shared
    path = records.study_folder(name) / "study.yaml"
    _check_free(name, path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    part.replace(path)
    return path


def _listed(entries):
    """The entries of a recipe as a list of dicts, none shared with another recipe."""
    return [dict(entry or {}) for entry in (entries if isinstance(entries, list) else [entries])]


def _check_free(name, path, content):
    shipped = (records.ROOT / "studies" / f"{name}.yaml").exists()
    if path.exists() and not shipped and studies.load(name) == content:
        return  # the same once more
    if shipped or any(path.parent.glob("*")):
        raise ParameterError("NEW", name, "is the name of another study; choose a new one")


def _apply(content, change):
    """Make one change, `[recipe.]parameter=value[,value]`, to the content of a study file."""
    target, equals, text = change.partition("=")
    recipe, _, key = target.rpartition(".")
    if not equals or not text:
        raise ParameterError("SET", change, "must be parameter=value, or recipe.parameter=value")
    values = [parameters.from_text(key, part) for part in text.split(",")]
    value = values if len(values) > 1 else values[0]
    known = {name for group in content["notebooks"].values() for name in group}
    if recipe and recipe not in known:
        raise ParameterError("SET", change, f"must name a recipe: {', '.join(sorted(known))}")
    if not recipe:
        content["parameters"] = (content.get("parameters") or {}) | {key: value}
    for name, entries in (pair for g in content["notebooks"].values() for pair in g.items()):
        for entry in entries:
            has = studies.recipe_parameters(name) | entry
            off = key in has and not has[key] and key != "seed"
            if recipe == name or (not recipe and key in entry and not off):
                entry[key] = value
            elif not recipe and off:
                entry[key] = has[key]


def run(
    names: list[str], options: list[str], gpus: int | str = 0, resume: bool = False
) -> Iterator[tuple[str, int]]:
    """Run studies, one after the other, whatever becomes of the one before.

    Args:
        names: of the studies; all are checked before the first run of any.
        options: what Snakemake is told beside the study, a list of str.
        gpus: how many GPUs the machine has, or a job of a cluster gets.
        resume: whether what a killed start left behind may be taken over.

    Yields:
        (name, exit code of Snakemake, negative if a signal ended it), each study in its turn.

    Raises:
        ParameterError: a study is wrong, runs already, or was killed and is not to be resumed.
    """
    for name in names:
        studies.plan(name)
    for name in names:
        folder = records.study_folder(name)
        with locks.held(folder / ".lock", wait=False, inherited=True) as holder:
            if holder:
                allowed = (
                    f"is being run by {holder}; `make status STUDY={name}` tells how far it is"
                )
                raise ParameterError("study", name, allowed)
            yield name, _run(name, folder, [*options, "--config", f"gpus={gpus}"], resume)


def _run(study, folder, options, resume):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", records.ROOT / "studies" / "Snakefile",
        "--directory", folder, *options, f"study={study}",
    ]  # fmt: skip
    if any(folder.glob(".snakemake/locks/*")):
        if not resume:
            allowed = f"was killed; `make resume STUDY={study}` goes on where it was"
            raise ParameterError("study", study, allowed)
        _wait([*command, "--unlock"])
    code = _wait(command)
    if code > 0 and any(folder.glob("records/*.json")) and unfinished(study):
        _wait([*command, "there=True"])  # tables and figures of what there is
    return code


def _wait(command):
    """Exit code of a command, which gets to clean up first when both are to end."""
    process, told = subprocess.Popen(command, close_fds=False), []  # it holds the lock as well

    def pass_on(number, _):
        told.append(-number)
        if number == signal.SIGTERM:  # a terminal interrupts both by itself
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return told[0] if told else code


def unfinished(study: str) -> dict[str, str]:
    """{run: why it has no record} of the planned runs that have none."""
    folder = records.study_folder(study) / "records"
    failed = forecast.failed(study)
    names = [name for name in studies.plan(study) if not (folder / f"{name}.json").exists()]
    return {name: failed.get(name, "") for name in names}
