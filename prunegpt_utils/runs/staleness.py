"""Which records are out of date, and why: other code, another notebook, other parameters."""

import collections
import graphlib
import importlib.metadata
import platform
from collections.abc import Iterator

from prunegpt_utils.runs import expansion, paths, records, study_files

_PACKAGES = ("torch", "transformers")


def outdated(study: str) -> dict[str, str]:
    """{run: why} of the planned runs that have a record and are to be made again.

    They are made again if their parameters, the code of their notebook or of a module that it uses
    (see `provenance`), or the Python whose documentation they read changed since, or if a run that
    they stand on is made again or was. A record that does not say by which code it was made, as
    those of earlier versions, is kept; so is one that was made with other versions of packages, see
    `other_versions`.

    Raises:
        ParameterError: a record does not read.
    """
    plan = expansion.plan(study)
    return outdated_among(plan, _records(study, plan))


def outdated_among(plan: dict, known: dict[str, dict]) -> dict[str, str]:
    """The same of the records that are `known` by the names of their runs."""
    found: dict[str, str] = {}
    needs = {name: spec.depends_on for name, spec in plan.items()}
    for name in graphlib.TopologicalSorter(needs).static_order():
        if name in known:
            reasons = [*changes(known[name], plan[name])]
            reasons += [f"{need} is made again" for need in needs[name] if need in found]
            reasons += [
                f"{need} was made again" for need in needs[name]
                if need in known and _began_after(known[need], known[name])
            ]  # fmt: skip
            if reasons:
                found[name] = reasons[0]
    return {name: found[name] for name in plan if name in found}


def other_versions(study: str) -> list[str]:
    """A line for each package or processor that made records and is not the one of today."""
    from prunegpt_utils.distributed import processor_name  # imports torch

    here = {name: importlib.metadata.version(name) for name in _PACKAGES}
    here["processor"] = processor_name()
    counts: collections.Counter = collections.Counter()
    for record in _records(study, expansion.plan(study)).values():
        counts.update((name, record["environment"].get(name)) for name in here)
    return [
        f"{count} records were made with {name} {version}; here it is {here[name]}"
        for (name, version), count in counts.items() if version not in (None, here[name])
    ]  # fmt: skip


def code_changes(then: dict[str, str] | None, now: dict[str, str]) -> str:
    """What of the code is not as it was, in words, or ''; both are {module: hash}."""
    names = sorted({*(then or {}), *now} if then else ())
    changed = [name for name in names if then.get(name) != now.get(name)]
    modules = [name for name in changed if name != "notebook"]
    parts = ["notebook"] if "notebook" in changed else []
    parts += [f"code of {', '.join(modules)}"] if modules else []
    return f"{' and '.join(parts)} changed" if parts else ""


def _records(study, plan):
    folder = paths.study_folder(study) / "records"
    found = {name: records.read(folder / f"{name}.json") for name in plan}
    return {name: record for name, record in found.items() if record}


def changes(record: dict, spec: expansion.RunSpec) -> Iterator[str]:
    """What a run would be given now and was not: parameters, code, text, criteria, in words."""
    given = study_files.default_parameters(spec.notebook) | spec.parameters
    was = record["parameters"]
    if changed := [key for key, value in given.items() if was.get(key, value) != value]:
        yield f"parameters changed: {', '.join(changed)}"
    if code := code_changes(record.get("code"), study_files.code_of(spec.notebook)):
        yield code
    python = record["environment"]["python"]
    if given.get("data") in ("pydocs", "pydocs-small") and python != platform.python_version():
        yield f"its text is the documentation of Python {python}"
    if own := record["environment"].get("own_criteria"):
        from prunegpt_utils.criteria import OWN  # imports torch

        if OWN not in ({}, own):
            yield "your own criteria changed"


def _began_after(record, other):
    """Whether a run began when the other had ended; a run may make another that it needs."""
    return records.began(record) > records.began(other) + other["seconds"] + 1
