"""The store of trainings: what was trained once is not trained again, in whichever study.

A training lies in a folder named by a hash of all that its outcome depends on (weights, text,
configuration, teacher, code: see `checkpoints.training_identity`). A run whose training is there
already, made by whatever run, is given its outcome.
"""

import contextlib
import shutil
from pathlib import Path

from prunegpt_utils.errors import environment_number
from prunegpt_utils.files import acquire
from prunegpt_utils.runs import paths

LIMIT = 20.0  # gigabytes


def folder() -> Path:
    """Where trainings are: `runs/.trainings`, which cannot be a study's name."""
    return paths.study_folder(".trainings")


def limit() -> int:
    """Bytes that ended trainings may take: 20 GB, or as many GB as PRUNEGPT_TRAININGS_GB says.

    Raises:
        ParameterError: it is no number of at least 0.
    """
    return int(1e9 * environment_number("PRUNEGPT_TRAININGS_GB", LIMIT, "gigabytes"))


def trim() -> None:
    """Remove ended trainings, those first that were used longest ago, until `limit` is kept."""
    room = limit()
    with acquire(folder() / "lock"):
        for training in sorted(folder().glob("*/training.json"), key=_last_used, reverse=True):
            room -= _size(training.parent)
            if room < 0:
                _remove(training.parent)


def clear() -> tuple[int, int, int]:
    """Remove all trainings that no process uses: how many, their bytes, and how many stay."""
    with acquire(folder() / "lock"):
        found = {place: _size(place) for place in sorted(folder().glob("*/"))}
        gone = [place for place in found if _remove(place)]
    return len(gone), sum(found[place] for place in gone), len(found) - len(gone)


def _last_used(training):
    lock = training.with_name("lock")  # who uses a training writes its name into it
    return (lock if lock.exists() else training).stat().st_mtime_ns


def _size(place):
    sizes = 0
    for file in place.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a training that just ended tidies up
            sizes += file.stat().st_size
    return sizes


def _remove(place):
    """Whether the training was nobody's right now, and is gone."""
    with acquire(place / "lock", wait=False) as holder:
        if not holder:
            (place / "training.json").unlink(missing_ok=True)  # from here on it has not ended
            shutil.rmtree(place)
        return not holder
