"""Where the files of studies are."""

import os
from pathlib import Path

from prunegpt_utils.errors import ParameterError

ROOT = Path(__file__).resolve().parents[2]  # the project's folder


def study_folder(study: str) -> Path:
    """Where a study writes: `runs/<study>`, or under the folder named by PRUNEGPT_RUNS."""
    return Path(os.environ.get("PRUNEGPT_RUNS") or ROOT / "runs").resolve() / study


def records_folder(study: str) -> Path:
    """Where the records of a study are: of the run if there are any, else the published ones.

    Raises:
        ParameterError: there are none.
    """
    for folder in (study_folder(study) / "records", ROOT / "results" / study):
        if any(folder.glob("*.json")):
            return folder
    raise ParameterError("study", study, "has no records yet; `make study STUDY=...` makes them")
