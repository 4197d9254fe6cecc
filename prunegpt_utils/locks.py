"""Locks that vanish with the process that holds them, however it ends."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, wait: bool = True, inherited: bool = False) -> Iterator[str]:
    """Hold a lock file while the block runs.

    Args:
        path: Path of the file; it is made if need be, and stays.
        wait: whether to wait for another process that holds it.
        inherited: whether programs that this one starts with its open files hold the lock as well.

    Yields:
        str: empty, or if the lock was not to be had at once, which process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        os.set_inheritable(file.fileno(), inherited)
        holder = "" if _lock(file, wait=False) else file.read().strip() or "another process"
        if holder and wait:
            _lock(file)
        if wait or not holder:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield holder


def _lock(file, wait=True):
    """Whether the lock is ours now; where files cannot be locked, every process may go on."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
