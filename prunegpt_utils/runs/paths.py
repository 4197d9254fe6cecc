"""Where the files of studies are."""

import os
import tempfile
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import expand_home

ROOT = Path(__file__).resolve().parents[2]  # the project's folder


def study_folder(study: str) -> Path:
    """Where a study writes: `runs/<study>`, or under the folder named by PRUNEGPT_RUNS."""
    named = os.environ.get("PRUNEGPT_RUNS")
    return (expand_home(named) if named else ROOT / "runs").resolve() / study


def as_template(path: Path) -> str:
    """A path as papermill wants it, which puts parameters in for what stands between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def check_writable(folder: Path) -> None:
    """Raise `ParameterError` unless files can be written to a folder, which need not be there."""
    try:
        there = next(part for part in (folder, *folder.parents) if part.exists())
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        allowed = f"cannot be written ({error.strerror}); PRUNEGPT_RUNS may name another"
        raise ParameterError("results folder", str(folder), allowed) from error


def activity(folder: Path, run: str) -> Path:
    """Where a run of the study in `folder` says what it does, see `runs.activity`."""
    return folder / "activity" / f"{run}.txt"


def records_folder(study: str) -> Path:
    """Where the records of a study are: of the run if there are any, else the published ones.

    Raises:
        ParameterError: there are none.
    """
    for folder in (study_folder(study) / "records", ROOT / "results" / study):
        if any(folder.glob("*.json")):
            return folder
    raise ParameterError("study", study, "has no records yet; `make study STUDY=...` makes them")
