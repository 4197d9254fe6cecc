"""What of a study runs right now, and what failed."""

import re
import time
from collections.abc import Iterable
from pathlib import Path

from prunegpt_utils.runs import expansion, paths


def running(study: str, within: float = 120) -> dict[str, str]:
    """{run: its line of progress} of the trainings that moved in the last seconds."""
    lines = {}
    for path in sorted(paths.study_folder(study).glob("checkpoints/*/*/progress.txt")):
        if abs(time.time() - path.stat().st_mtime) < within:  # clocks differ, and may be set back
            lines[path.parent.parent.name] = path.read_text("utf-8").strip()
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
    error = r"[\w.]*(Error|Exception|Interrupt)\b"
    lines = log.read_text("utf-8", "replace").splitlines()
    errors = [line.strip() for line in lines if re.match(error, line)]
    return errors[-1] if errors else "was killed, or never began"
