"""What a run is doing right now: its kernel says so in a file, and holds a lock on it as it lives.

A lock vanishes with the process that holds it, however that ends: a run is running if its file is
locked. Where files cannot be locked, only what a training says of itself is known.
"""

import contextlib
import functools
import sys
import time
from pathlib import Path

from prunegpt_utils.files import acquire, is_locked

_held: dict[Path, contextlib.ExitStack] = {}


def begin(path: Path, headings: dict[str, str]) -> None:
    """Hold the file of a run, and note in it which part of its notebook is executed.

    Args:
        path: of the file.  headings: of `study_files.headings`, of the notebook that runs.
    """
    end(path)
    _held[path] = stack = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # a disk that is full is told by what needs it
        stack.enter_context(acquire(path, wait=False))
        path.write_text("begins\n", "utf-8")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell:
        note = functools.partial(_note, path, headings)
        shell.events.register("pre_run_cell", note)
        stack.callback(shell.events.unregister, "pre_run_cell", note)


def end(path: Path) -> None:
    """Let go of the file of a run that this process has held, and remove it."""
    if path in _held:
        path.unlink(missing_ok=True)
        _held.pop(path).close()


def read(path: Path) -> str:
    """What the run of this file is doing, and for how long; '' if it is not running."""
    try:
        if is_locked(path):
            minutes = max(0, time.time() - path.stat().st_mtime) / 60
            return f"{path.read_text('utf-8').strip()}, for {minutes:.0f} min"
    except OSError:  # it ended just now
        pass
    return ""


def _note(path, headings, info):
    first = next(iter(info.raw_cell.strip().splitlines()), "")
    with contextlib.suppress(OSError):
        path.write_text(f"{headings.get(info.raw_cell) or first}\n", "utf-8")
