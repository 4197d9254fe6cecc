"""One JSON record a run: written in one step, validated when written and when read."""

import calendar
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.provenance import code_hash, module_hashes
from prunegpt_utils.runs import activity, expansion, paths, schema, study_files, trainings

TIME = "%Y-%m-%dT%H:%M:%SZ"  # in UTC


@dataclass(frozen=True)
class Run:
    """One notebook at one set of parameters, and the folders it may write to."""

    notebook: str
    parameters: dict
    code: dict = field(default_factory=dict)  # {module: hash}, as it was when the run began
    planned: expansion.RunSpec | None = None  # by its study, when it began
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)  # which nobody sets back

    @property
    def name(self) -> str:
        return expansion.run_name(self.parameters)

    @property
    def folder(self) -> Path:
        return paths.study_folder(self.parameters["study"])

    @property
    def cache(self) -> Path:
        makers = module_hashes("from prunegpt_utils import corpora, teacher_cache, tokenization")
        return self.folder / "cache" / code_hash(repr(makers))  # what other code made is not read

    @property
    def label(self) -> str:
        return f"{self.parameters['study']}/{self.name}"

    @property
    def checkpoints(self) -> Path:
        return trainings.folder()  # of all studies: equal trainings are made once

    @property
    def model(self) -> Path:
        return self.folder / "models" / self.name

    @property
    def activity(self) -> Path:
        return paths.activity(self.folder, self.name)

    @property
    def record(self) -> Path:
        return self.folder / "records" / f"{self.name}.json"


def open_run(notebook: str, parameters: dict) -> Run:
    """Run of a notebook at checked parameters, before any work.

    Raises:
        ParameterError: the folder cannot be written, a record made with others exists, the study
            file has a mistake, or the limit of the store of trainings is no number.
    """
    # a study file with a mistake is told now; what it holds when all is measured does not count
    planned = expansion.find(parameters)
    run = Run(notebook, parameters, study_files.code_of(notebook), planned)
    known = read(run.record)
    for name, value in parameters.items() if known else ():
        was = known["parameters"].get(name)
        if was != value and name != "replace_base":  # which does not change what is measured
            allowed = f"differs from {was!r}, which made the record {run.name} of this study"
            raise ParameterError(name, value, f"{allowed}; choose another study name")
    paths.check_writable(run.folder)
    trainings.limit()
    if os.environ.get("RANK", "0") == "0":  # of processes that were launched together, one
        activity.begin(run.activity, study_files.headings(notebook))
    return run


def write(run: Run, **content: Any) -> dict:
    """Write and return the `schema.Record` of a finished run; `content` is what was measured.

    Raises:
        ParameterError: what was measured does not make a record.
    """
    from prunegpt_utils.config import peak_lr
    from prunegpt_utils.distributed import choose_precision, processes

    p, planned = run.parameters, run.planned
    if "lr" in p and (training := content.get("training", {})).get("steps"):
        content["training"] = training | {"peak_lr": peak_lr(p)}
    precision = choose_precision(p.get("precision", "auto"))  # in which its trainings ran
    record = _as_json({
        "schema": schema.SCHEMA, "study": p["study"], "run": run.name, "recipe": p["recipe"],
        "base_recipe": planned.base_recipe if planned else p["recipe"],
        "axes": planned.axes if planned else {}, "seed": p["seed"],
        "notebook": run.notebook, "parameters": p, "code": run.code or None,
        "environment": environment() | {"precision": precision},
        "started": time.strftime(TIME, time.gmtime(run.started)),
        "seconds": round(time.monotonic() - run.clock, 1), **content,
    })  # fmt: skip
    for problem in schema.problems(record):
        raise ParameterError("record", run.record.name, problem)
    _check_text(run, record)
    if processes().is_main_process:
        put(run.record, record)
        activity.end(run.activity)
        trainings.trim()
    return record


def _check_text(run, record):
    """Raise unless what a run stands on, or all of a study without a plan, read the same text."""
    there = (file.stem for file in run.record.parent.glob("*.json"))
    names = run.planned.depends_on if run.planned else there  # others may be yet to be made again
    for other in (read(run.record.with_stem(name)) for name in sorted(names)):
        alike = other and other["parameters"].get("data") == run.parameters.get("data")
        if alike and other["data"]["sha256"] != record["data"]["sha256"]:
            allowed = f"is not the text that {other['run']} read; choose another study name"
            raise ParameterError("data", record["data"]["name"], allowed)


def trained_as(record: dict) -> str:
    """study/run of the equal training whose outcome a run was given; empty if it trained itself."""
    maker = (record["training"].get("made_by") or {"run": ""})["run"]
    return maker if maker != f"{record['study']}/{record['run']}" else ""


def seconds_trained(record: dict) -> float:
    """Seconds in which a run itself trained."""
    return 0.0 if trained_as(record) else record["training"]["seconds"]


def began(record: dict) -> float:
    """When a run began, in seconds since 1970; 0 if its record says it in another way."""
    with contextlib.suppress(ValueError):
        return float(calendar.timegm(time.strptime(record["started"], TIME)))
    return 0.0


def put(path: Path, record: dict) -> None:
    """Write a dict with its checksum as JSON, in one step; two processes may write one record."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(_as_json(record), indent=1, sort_keys=True) + "\n", "utf-8")


def checksum(record: dict) -> str:
    """sha256 of all of a record but the checksum itself."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load(path: str | Path) -> Any:
    """One JSON file as it is; None where there is none. ValueError if it does not read."""
    try:
        return json.loads(Path(path).read_text("utf-8")) if Path(path).exists() else None
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read(path: str | Path) -> dict | None:
    """One record; None where there is none.

    Raises:
        ParameterError: the file holds something else, or the record of another version.
    """
    try:
        record = load(path)
    except ValueError as error:
        allowed = f"is not JSON: {error}; if it is deleted, the run is made again"
        raise ParameterError("record", Path(path).name, allowed) from error
    for problem in schema.problems(record) if record is not None else ():
        raise ParameterError("record", Path(path).name, problem)
    return record


def read_study(study: str) -> tuple[list[dict], Path]:
    """(records in the order of their names, folder): of the run if there is one, else published."""
    folder = paths.records_folder(study)
    return [read(file) for file in sorted(folder.glob("*.json"))], folder


def published(study: str) -> list[dict]:
    """Its records in the repository, in the order of their names; none if it is not published."""
    return [read(file) for file in sorted((paths.ROOT / "results" / study).glob("*.json"))]


def environment() -> dict:
    """What a reader needs to judge the numbers: code version, packages, device."""
    import torch

    from prunegpt_utils.criteria import OWN
    from prunegpt_utils.distributed import device_name, processes, processor_name
    from prunegpt_utils.hub import loaded_commits

    status = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD"), "dirty": status is None or bool(status),
        "python": platform.python_version(), "device": device_name(), "processor": processor_name(),
        "threads": torch.get_num_threads(), "processes": processes().num_processes,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
        **({"own_criteria": OWN} if OWN else {}),
        **({"hub": commits} if (commits := loaded_commits()) else {}),  # of teachers as well
    }  # fmt: skip


def _git(*words):
    with contextlib.suppress(OSError):  # no git here
        done = subprocess.run(["git", "-C", paths.ROOT, *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None


def _as_json(record):
    """A record as it comes back from its file, with its checksum."""
    # JSON has no infinity: a perplexity that overflows is the text `inf` beside its nll
    texts = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
    record = json.loads(json.dumps(record), parse_constant=texts.get)
    return record | {"checksum": checksum(record)}
