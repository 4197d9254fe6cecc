"""One JSON record a run: where it lies, what it holds, written in one step."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunegpt_utils.parameters import ParameterError

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
_PACKAGES = ("torch", "transformers", "numpy")
_ASIDE = ("replace_base",)  # parameters that do not change what is measured


FRACTIONS = {"sparsity": "s", "neurons_gone": "n", "heads_gone": "h"}  # in a run's name


@dataclass(frozen=True)
class Run:
    """One notebook at one set of parameters, and the folders it may write to."""

    notebook: str
    parameters: dict
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)  # which nobody sets back

    @property
    def name(self) -> str:
        return run_name(self.parameters)

    @property
    def folder(self) -> Path:
        return study_folder(self.parameters["study"])

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints" / self.name

    @property
    def model(self) -> Path:
        return self.folder / "models" / self.name


def study_folder(study: str) -> Path:
    """Where a study writes: `runs/<study>`, or under the folder named by PRUNEGPT_RUNS."""
    return Path(os.environ.get("PRUNEGPT_RUNS") or ROOT / "runs").resolve() / study


def run_name(parameters: dict) -> str:
    """`<recipe>[-s<percent>][-n<percent>][-h<percent>]-seed<k>`: weights, neurons, heads gone."""
    fractions = {letter: parameters.get(key, 0) for key, letter in FRACTIONS.items()}
    percents = "".join(f"-{letter}{100 * gone:g}" for letter, gone in fractions.items() if gone)
    return f"{parameters['recipe']}{percents}-seed{parameters['seed']}"


def open_run(notebook: str, parameters: dict) -> Run:
    """Run of a notebook at checked parameters, before any work.

    Raises:
        ParameterError: the folder cannot be written, or a record made with others exists.
    """
    run = Run(notebook, parameters)
    known = read(run.folder / "records" / f"{run.name}.json")
    for name, value in parameters.items() if known else ():
        was = known["parameters"].get(name)
        if was != value and name not in _ASIDE:
            allowed = f"differs from {was!r}, which made the record {run.name} of this study"
            raise ParameterError(name, value, f"{allowed}; choose another study name")
    there = next(part for part in (run.folder, *run.folder.parents) if part.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return run
    except OSError as error:
        allowed = f"cannot be written ({error.strerror}); PRUNEGPT_RUNS may name another"
        raise ParameterError("results folder", str(run.folder), allowed) from error


def write(run: Run, **content: Any) -> dict:
    """Write the record of a finished run, beside its place and then into it; one process does.

    Args:
        run: Run.
        content: what was measured: model, data, sparsity, metrics, protocol, training, ...

    Returns:
        dict: the record as written.
    """
    from prunegpt_utils.models import processes

    p = run.parameters
    record = {
        "study": p["study"], "run": run.name, "recipe": p["recipe"], "seed": p["seed"],
        "notebook": run.notebook, "parameters": p, "environment": environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started)),
        "seconds": round(time.monotonic() - run.clock, 1), **content,
    }  # fmt: skip
    if not processes().is_main_process:
        return record
    put(run.folder / "records" / f"{run.name}.json", record)
    return record


def put(path: Path, record: dict) -> None:
    """Write a record and its checksum, beside its place and then into it."""
    record = _plain(record)
    record["checksum"] = checksum(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")  # two processes may write one record
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    part.replace(path)


def checksum(record: dict) -> str:
    """sha256 of all of a record but the checksum itself."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(path: str | Path) -> dict | None:
    """One record; None where there is none."""
    path = Path(path)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def read_study(study: str) -> tuple[list[dict], Path]:
    """(records in the order of their names, folder): of the run if there is one, else published."""
    folder = records_folder(study)
    return [read(file) for file in sorted(folder.glob("*.json"))], folder


def records_folder(study: str) -> Path:
    """Where the records of a study are: of the run if there are any, else the published ones.

    Raises:
        ParameterError: there are none.
    """
    for folder in (study_folder(study) / "records", ROOT / "results" / study):
        if any(folder.glob("*.json")):
            return folder
    raise ParameterError("study", study, "has no records yet; `make study STUDY=...` makes them")


def environment() -> dict:
    """What a reader needs to judge the numbers: code version, packages, device."""
    import torch

    from prunegpt_utils.criteria import OWN
    from prunegpt_utils.models import processes

    cuda = torch.cuda.is_available()
    status = _git("status", "--porcelain")
    return {
        **({"own_criteria": OWN} if OWN else {}),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": status is None or bool(status),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
        "processes": processes().num_processes,
    } | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _git(*words):
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value):
    """JSON has no infinity: a perplexity that overflows is the text `inf` beside its nll."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
