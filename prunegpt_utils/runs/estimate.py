"""What a study still has to do, and how long that takes."""

import contextlib
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import expansion, paths, records, staleness, status


def estimate(study: str) -> dict:
    """What is left of a study, and its cost.

    Times come from records: seconds a token in training, and the rest of a notebook's seconds,
    each the median over records of the same notebook and base model on this kind of device.

    Returns:
        dict: done, names of runs; todo, {name: why it is made again, or ''}; unknown, the names of
        those to do without a record to judge by; of the others seconds of one process, and bytes
        of the models and checkpoints they write; judged_by, how many records the times come from.
    """
    planned = expansion.plan(study)
    todo = dict.fromkeys(status.unfinished(study), "") | staleness.outdated(study)
    done = [name for name in planned if name not in todo]
    known = list(_known_records()) if todo else []
    alike = {name: [r for r in known if _alike(r, planned[name])] for name in todo}
    guesses = {name: _seconds(alike[name], planned[name].parameters) for name in todo}
    judged = [name for name in todo if guesses[name] is not None]
    sizes = [statistics.median(r["model"]["parameters"] for r in alike[name]) for name in judged]
    return {
        "done": done, "todo": todo, "unknown": [name for name in todo if name not in judged],
        "seconds": sum(guesses[name] for name in judged),
        "judged_by": len({r["checksum"] for name in judged for r in alike[name]}),
        "bytes": 2 * 4 * sum(sizes),  # of the model, and of the checkpoint it came from
    }  # fmt: skip


def _known_records() -> Iterator[dict]:
    here, found = _device_name(), {}
    ours = paths.study_folder("x").parent.glob("*/records/*.json")
    for path in (*sorted(ours), *sorted(paths.ROOT.glob("results/*/*.json"))):
        with contextlib.suppress(ParameterError):  # of another version
            record = records.read(path)
            found[record["checksum"]] = record  # one that is published is known once
    yield from (each for each in found.values() if each["environment"]["device"] == here)


def _device_name():
    """`distributed.device_name`, without a second of torch where no driver of a GPU is."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    if sys.platform == "linux" and not any(Path(each).exists() for each in drivers):
        return f"cpu {platform.machine()}"
    from prunegpt_utils.distributed import device_name

    return device_name()


def _alike(record, spec):
    base = spec.parameters.get("model", "pydocs-base")
    return record["notebook"] == spec.notebook and record["parameters"].get("model", base) == base


def _seconds(alike, p):
    """Estimated seconds of a run at parameters `p`; None if nothing is like it."""
    own = [r for r in alike if not records.trained_as(r)]
    trained = [r["training"] for r in own if r["training"]["tokens"]]
    if not alike or p.get("epochs") or (p.get("steps") and not trained):
        return None
    rest = statistics.median(max(0, r["seconds"] - records.seconds_trained(r)) for r in alike)
    if not p.get("steps"):
        return rest
    pace = statistics.median(row["seconds"] / row["tokens"] for row in trained)
    tokens, last = p["steps"], alike[-1]["parameters"]
    for key in ("batch", "gradient_accumulation_steps", "block_size"):
        tokens *= p.get(key, last.get(key, 1))
    return rest + pace * tokens
