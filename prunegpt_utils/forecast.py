"""What a study still has to do, how long that takes, and what runs right now."""

import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from prunegpt_utils import records, studies


def forecast(study: str) -> dict:
    """What `make plan` tells.

    Times come from records: seconds a token in training, and the rest of a notebook's seconds,
    each the median over records of the same notebook and base model on this kind of device.

    Args:
        study: name.

    Returns:
        dict: done and todo, lists of run names; seconds, of one process doing what is left, or
        None if a notebook has no record to judge by; unknown, names of such runs; bytes, of the
        models and checkpoints to be written; judged_by, how many records the times come from.
    """
    plan = studies.plan(study)
    folder = records.study_folder(study) / "records"
    done = [name for name in plan if (folder / f"{name}.json").exists()]
    todo = [name for name in plan if name not in done]
    known = list(_known_records())
    seconds, unknown, size = 0.0, [], 0
    for name in todo:
        alike = [r for r in known if _alike(r, plan[name])]
        guess = _seconds(alike, plan[name].parameters)
        if guess is None:
            unknown.append(name)
        else:
            seconds += guess
            # the model, and the checkpoint it came from
            size += 2 * 4 * statistics.median(r["model"]["parameters"] for r in alike)
    return {
        "done": done, "todo": todo, "seconds": seconds, "unknown": unknown, "bytes": size,
        "judged_by": len(known),
    }  # fmt: skip


def _known_records():
    here = records.environment()["device"]
    for folder in (
        records.study_folder("x").parent.glob("*/records"),
        records.ROOT.glob("results/*"),
    ):
        for path in (file for each in folder for file in sorted(each.glob("*.json"))):
            record = records.read(path)
            if record["environment"]["device"] == here:
                yield record


def _alike(record, run):
    wanted = run.parameters.get("model", "pydocs-base")
    return (
        record["notebook"] == run.notebook and record["parameters"].get("model", wanted) == wanted
    )


def _seconds(alike, p):
    """Estimated seconds of a run at parameters `p`; None if nothing is like it."""
    if not alike or p.get("epochs"):
        return None
    trained = [r["training"] for r in alike if r["training"]["tokens"]]
    if p.get("steps") and not trained:
        return None
    rest = statistics.median(r["seconds"] - r["training"]["seconds"] for r in alike)
    if not p.get("steps"):
        return rest
    pace = statistics.median(row["seconds"] / row["tokens"] for row in trained)
    last = alike[-1]["parameters"]
    shape = [p.get(key, last.get(key, 1)) for key in ("steps", "batch", "accumulate", "block")]
    steps, batch, accumulate, block = shape
    return rest + pace * steps * batch * accumulate * block


def running(study: str, within: float = 120) -> dict[str, str]:
    """{run: what its progress bar says} of the trainings that moved in the last seconds."""
    lines = {}
    for path in sorted(records.study_folder(study).glob("checkpoints/*/*/progress.txt")):
        if abs(time.time() - path.stat().st_mtime) < within:  # clocks differ, and may be set back
            lines[path.parent.parent.name] = path.read_text("utf-8").strip()
    return lines


def failed(study: str, busy: Iterable[str] = ()) -> dict[str, str]:
    """{run: why} of the runs that began and wrote no record, but for those that are still busy."""
    folder, found = records.study_folder(study), {}
    for name in studies.plan(study):
        log, record = folder / "logs" / f"{name}.log", folder / "records" / f"{name}.json"
        if log.exists() and not record.exists() and name not in busy:
            found[name] = reason(log)
    return found


def reason(log: Path) -> str:
    """Why a run ended, as the last error in its log says."""
    lines = log.read_text("utf-8", "replace").splitlines()
    errors = [
        line.strip() for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)
    ]
    return errors[-1] if errors else "was killed, or never began"
