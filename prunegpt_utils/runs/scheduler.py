"""Run studies one after the other with Snakemake, one start at a time in a folder."""

import signal
import subprocess
import sys
from collections.abc import Iterator

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import acquire
from prunegpt_utils.runs import expansion, paths
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
        folder = paths.study_folder(name)
        with acquire(folder / ".lock", wait=False, inherited=True) as holder:
            if holder:
                why = f"is being run by {holder}; `make status STUDY={name}` tells how far it is"
                raise ParameterError("study", name, why)
            yield name, _run(name, folder, [*options, "--config", f"gpus={gpus}"], resume)


def _run(study, folder, options, resume):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", paths.ROOT / "studies" / "Snakefile",
        "--directory", folder, *options, f"study={study}",
    ]  # fmt: skip
    if any(folder.glob(".snakemake/locks/*")):
        if not resume:
            why = f"was killed; `make resume STUDY={study}` goes on where it was"
            raise ParameterError("study", study, why)
        _wait([*command, "--unlock"])
    code = _wait(command)
    if code > 0 and any(folder.glob("records/*.json")) and unfinished(study):
        _wait([*command, "there=True"])  # tables and figures of what there is
    return code


def _wait(command):
    """Exit code of a command, which gets to clean up first when both are to end."""
    process, received = subprocess.Popen(command, close_fds=False), []  # it holds the lock as well

    def pass_on(number, _):
        received.append(-number)
        if number == signal.SIGTERM:  # a terminal interrupts both by itself
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return received[0] if received else code
