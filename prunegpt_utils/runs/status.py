"""What of a study runs right now, and what failed."""

import contextlib
import re
import time
from collections.abc import Iterable
from pathlib import Path

from prunegpt_utils.runs import activity, expansion, paths, trainings


def running(study: str, within: float = 120) -> dict[str, str]:
    """{run: what it does} of the runs whose process lives, or whose training moved just now.

    A training says how far it is, and any other work which part of its notebook that is.
    """
    folder, lines = paths.study_folder(study), {}
    for path in sorted(folder.glob("activity/*.txt")):
        if doing := activity.read(path):
            lines[path.stem] = f"{path.stem}: {doing}"
    for path in sorted(trainings.folder().glob("*/progress.txt")):
        with contextlib.suppress(FileNotFoundError):  # a training that ended just now
            place, _, line = path.read_text("utf-8").strip().partition("/")
            # clocks differ, and may be set back
            if place == study and abs(time.time() - path.stat().st_mtime) < within:
                lines[line.partition(":")[0]] = line
    for run in unfinished(study):
        log = folder / "logs" / f"{run}.log"
        if log.exists() and not _errors(log) and time.time() - log.stat().st_mtime < 60:
            lines.setdefault(run, f"{run}: begins")  # its kernel takes a moment to start
    return lines


def unfinished(study: str) -> dict[str, str]:
    """{run: why it has no record} of the planned runs that have none; '' of one not begun."""
    folder = paths.study_folder(study)
    runs = [n for n in expansion.plan(study) if not (folder / "records" / f"{n}.json").exists()]
    logs = {run: folder / "logs" / f"{run}.log" for run in runs}
    return {run: failure_reason(log) if log.exists() else "" for run, log in logs.items()}


def failed(study: str, busy: Iterable[str] = ()) -> dict[str, str]:
    """{run: why} of the runs that began and wrote no record, but for those that are still busy."""
    return {run: why for run, why in unfinished(study).items() if why and run not in busy}


def failure_reason(log: Path) -> str:
    """Why a run ended, as the last error in its log says."""
    return (["was killed, or never began", *_errors(log)])[-1]


def _errors(log):
    error = r"[\w.]*(Error|Exception|Interrupt)\b|.*: (No module named|command not found)"
    lines = log.read_text("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if re.match(error, line)]
