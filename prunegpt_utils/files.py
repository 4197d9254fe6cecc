"""Files that are there whole or not at all, and locks that vanish with the process holding them."""

import contextlib
import hashlib
import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file or folder beside its place; it is put there in one step when the block ends.

    Yields a path to write to, of the same name. The folder of `path` is made, what is there already
    is replaced; if the block fails, `path` stays as it was. Whatever mode a library gave to what it
    wrote (safetensors, as of 0.8, lets only the owner read), others may read it as the umask says.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        apply_umask(part)
        if path.is_dir():  # a folder that holds something cannot be replaced in one step
            path.rename(Path(folder, "replaced"))
        part.replace(path)


def apply_umask(path: Path) -> None:
    """Give a file or folder, and all in it, the mode of what is newly made where it is."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        example = Path(folder, "new")
        example.mkdir()
        mode = stat.S_IMODE(example.stat().st_mode)
    for part in (path, *path.rglob("*")):
        if not part.is_symlink():
            with contextlib.suppress(OSError):  # a file system without modes
                part.chmod(mode if part.is_dir() else mode & 0o666)


def expand_home(path: str | Path) -> Path:
    """A path with `~` for the home folder; as it is where there is none (Path's own fails)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def cached_json(make: Callable, path: Path) -> Any:
    """`make()`, read from the JSON file `path` from the second call on; made anew if damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        return json.loads(path.read_text("utf-8"))
    with atomic_path(path) as part:
        part.write_text(json.dumps(make()), "utf-8")
    return json.loads(path.read_text("utf-8"))


def sha256(text: str) -> str:
    """Hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def acquire(path: Path, wait: bool = True, inherited: bool = False) -> Iterator[str]:
    """Hold a lock file while the block runs.

    Args:
        path: of the file; made if need be, and stays.  wait: for another process that holds it.
        inherited: whether programs that this one starts with its open files hold the lock as well.

    Yields:
        empty, or if the lock was not to be had at once, which process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        os.set_inheritable(file.fileno(), inherited)
        holder = "" if _lock(file, wait=False) else file.read().strip() or "another process"
        if holder and wait:
            _lock(file)
        removed = not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())))
        if not removed:
            if wait or not holder:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
            yield holder
    if removed:  # whoever held it has removed it: what was locked is no longer there
        with acquire(path, wait, inherited) as again:
            yield holder or again


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file; False where files cannot be locked."""
    if not path.exists():
        return False
    with path.open() as file:
        return not _lock(file, wait=False, shared=True)


def _lock(file, wait=True, shared=False):
    """Whether the lock is ours now; where files cannot be locked, every process may go on."""
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return True
