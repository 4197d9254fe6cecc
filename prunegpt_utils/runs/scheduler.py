"""Run studies one after the other with Snakemake, one start at a time in a folder."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import acquire, expand_home
from prunegpt_utils.runs import expansion, paths, study_files
from prunegpt_utils.runs.staleness import outdated
from prunegpt_utils.runs.status import unfinished


def run(
    names: list[str], options: list[str], gpus: int | str = 0, resume: bool = False
) -> Iterator[tuple[str, int]]:
    """Run studies, all checked before, one after the other, even if the one before failed.

    Args:
        options: for Snakemake.  gpus: how many the machine has, or a job of a cluster gets.
        resume: whether what a killed start left behind may be taken over.

    Yields:
        (name, exit code of Snakemake, negative if a signal ended it), each study in its turn.

    Raises:
        ParameterError: a study is wrong, runs already, or was killed and is not to be resumed.
    """
    for name in names:
        expansion.plan(name)
    for name in names:
        with _lock(name, resume):
            pass
    for name in names:
        with _lock(name, resume) as folder:
            yield name, _run(name, folder, [*options, "--config", f"gpus={gpus}"])


@contextlib.contextmanager
def _lock(study, resume):
    """Hold the study's folder, and yield it; one with locks of a killed start only to resume."""
    folder = paths.study_folder(study)
    paths.check_writable(folder)
    with acquire(folder / ".lock", wait=False, inherited=True) as holder:
        if holder:
            why = f"is being run by {holder}; `make status STUDY={study}` tells how far it is"
            raise ParameterError("study", study, why)
        if any(folder.glob(".snakemake/locks/*")) and not resume:
            why = f"was killed; `make resume STUDY={study}` goes on where it was"
            raise ParameterError("study", study, why)
        yield folder


def _run(study, folder, options):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", paths.ROOT / "studies" / "Snakefile",
        "--directory", folder, "--rerun-triggers", "mtime", "input",  # `outdated` knows the rest
        "--keep-incomplete",  # a record is written last, and whole
    ]  # fmt: skip
    # Snakemake would take a study called 2024 for a number
    options = [*options, f"study={study}" if study[0].isalpha() else f'study="{study}"']
    if any(folder.glob(".snakemake/locks/*")):
        _wait([*command, *options, "--unlock"])
    _log(folder).unlink(missing_ok=True)
    whole = [f"records/{path.name}" for path in sorted(folder.glob("records/*.json"))]
    if whole and any(folder.glob(".snakemake/incomplete/*")):
        # of runs that were killed after their record was written, which would be made again
        _wait([*command, *options, "--cleanup-metadata", *whole])
    again = [f"records/{run}.json" for run in outdated(study)]
    drawn = folder / "figures" / ".drawn"
    results = study_files.path_of(study_files.results_notebook(study))
    if drawn.exists() and drawn.stat().st_mtime < results.stat().st_mtime:
        again.append("figures/.drawn")
    code = _wait([*command, *(["--forcerun", *again] if again else []), *options])
    if code > 0 and any(folder.glob("records/*.json")) and unfinished(study):
        _wait([*command, *options, "there=True"])  # tables and figures of what there is
    return code


def complaint(study: str) -> tuple[str, Path]:
    """(what Snakemake's log says went wrong, in its own last words, or ''; the log)."""
    log = _log(paths.study_folder(study))
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    text = re.sub(r"\w+:\s+At least one job did not complete successfully\.", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    begins = [k for k, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return " ".join(lines[begins[-1] if begins else -1 :][:3])[:400], log


def _log(folder):
    return folder / "logs" / "snakemake.log"


def _environment(folder):
    """The variables of Snakemake and its jobs, which run in the study's folder, not in this one."""
    variable = functools.partial(os.getenv, default="")
    others = [Path(part) for part in variable("PYTHONPATH").split(os.pathsep) if part]
    # of this project, whichever is installed
    code = os.pathsep.join(map(str, [paths.ROOT, *map(Path.absolute, others)]))
    found = os.environ | {"PRUNEGPT_RUNS": str(folder.parent), "PYTHONPATH": code}
    cache = expand_home(variable("XDG_CACHE_HOME") or "~/.cache")
    try:
        paths.check_writable(cache)
    except ParameterError:  # of a home folder that is not there, or somebody else's
        found["XDG_CACHE_HOME"] = str(folder / ".cache")
        if (cache / "huggingface").is_dir():
            found.setdefault("HF_HOME", str(cache / "huggingface"))
    # its logs are in UTF-8, whatever the terminal
    return found | {"PYTHONIOENCODING": "utf-8"}


def _wait(command):
    """Exit code of a command, which gets to clean up first when both are to end.

    What Snakemake says goes to a log in the folder in which it works.
    """
    folder = Path(command[command.index("--directory") + 1])
    _log(folder).parent.mkdir(exist_ok=True)
    with _log(folder).open("a") as log:
        process, received = subprocess.Popen(
            command, stderr=log, env=_environment(folder),
            close_fds=False,  # it holds the lock as well
        ), []  # fmt: skip

    def pass_on(number, _):
        received.append(-number)
        if number == signal.SIGTERM:  # a terminal interrupts both by itself
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return received[0] if received else code
