"""Kills, interrupts, a full disk, a wrong clock: what is left is sound, and going on is enough.

PRUNEGPT_KILLS says how many kills at random times, PRUNEGPT_SEED which.
"""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ONE_THREAD, ROOT, cheap_study

from prunegpt_utils.runs import records, validation

pytestmark = pytest.mark.system
KILLS = int(os.environ.get("PRUNEGPT_KILLS", 20))
SEED = int(os.environ.get("PRUNEGPT_SEED", 0))
KINDS = {
    "kernel": "ipykernel_launcher",
    "papermill": "-m papermill",
    "snakemake": "-m snakemake",
    "everything": "",
}
PATIENCE = 600  # seconds; only a hang takes so long


def start(runs, command="study"):
    """Start the study in a session of its own, as `make` would; its output goes to a file."""
    environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(runs), "PRUNEGPT_SAVE_EVERY": "0"}
    words = [
        sys.executable, "-m", "prunegpt_utils", command, "cheap", "0",
        "--profile", ROOT / "studies" / "profiles" / "local", "--cores", "2",
    ]  # fmt: skip
    with (runs / "output.txt").open("w") as output:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def printed(runs):
    return (runs / "output.txt").read_text("utf-8")


def finished(runs, command="resume"):
    """Start and wait; the exit code."""
    return start(runs, command).wait(PATIENCE)


def processes(runs, kind="everything"):
    """What belongs to the study in `runs`, however it came to be orphaned."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            ours = process.environ().get("PRUNEGPT_RUNS") == str(runs)
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid() and KINDS[kind] in command:
            found.append(process)
    return found


def kill(runs, kind):
    """Kill -9; how many processes it hit."""
    hit = processes(runs, kind)
    for process in hit:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return len(hit)


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def outcome(runs):
    """What must not depend on any disturbance: {run: (metrics, sparsity, history)}."""
    files = sorted((runs / "cheap" / "records").glob("*.json"))
    found = {file.stem: records.read(file) for file in files}
    return {
        run: (record["metrics"], record["sparsity"], record["training"]["history"])
        for run, record in found.items()
    }


def trained(runs):
    """{training that has ended: when}; none of them may be made again."""
    notes = runs.glob(".trainings/*/training.json")
    return {note.parent.name: note.stat().st_mtime_ns for note in notes}


def unsound(runs, monkeypatch):
    """What is wrong with the records that are there; that the tree is being edited is not."""
    monkeypatch.setenv("PRUNEGPT_RUNS", str(runs))
    if not any((runs / "cheap" / "records").glob("*.json")):
        return []
    return [line for line in validation.validate("cheap") if "not committed" not in line]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The study undisturbed but for others who start it too: its folder and how long it took."""
    runs = tmp_path_factory.mktemp("calm")
    cheap_study(runs)
    begin = time.monotonic()
    first = start(runs)
    lock = runs / "cheap" / ".lock"
    until(lambda: lock.exists() and lock.read_text())
    environment = os.environ | {"PRUNEGPT_RUNS": str(runs)}
    for command in ("study", "resume"):
        words = [sys.executable, "-m", "prunegpt_utils", command, "cheap", "0", "--cores", "1"]
        other = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        message = f"error: study: 'cheap' is being run by process {first.pid} on "
        assert other.returncode == 1 and other.stderr.splitlines()[-1].startswith(message)
    assert first.wait(PATIENCE) == 0, printed(runs)
    assert set(outcome(runs)) == {"dense-seed0", "control-seed0"}
    return runs, time.monotonic() - begin


@pytest.fixture
def runs(tmp_path):
    """A folder with the cheap study; whatever still runs in it at the end is killed."""
    cheap_study(tmp_path)
    yield tmp_path
    kill(tmp_path, "everything")


def test_kills_at_random_times(calm, tmp_path, monkeypatch):
    rng, kills, folders = random.Random(SEED), 0, 0
    while kills < KILLS:
        runs = tmp_path / f"folder-{folders}"
        cheap_study(runs)
        folders, code, known = folders + 1, None, {}
        while code != 0:
            process = start(runs, "resume")
            if kills < KILLS:
                try:
                    process.wait(rng.uniform(0.1, calm[1]))
                except subprocess.TimeoutExpired:
                    kills += bool(kill(runs, rng.choice(list(KINDS))))
            # after the death of a notebook alone the others go on
            code = process.wait(PATIENCE)
            assert unsound(runs, monkeypatch) == []
            now = trained(runs)
            assert {name: now.get(name) for name in known} == known
            known = now
        assert outcome(runs) == outcome(calm[0])
        until(lambda runs=runs: not processes(runs))  # an orphan may still be finishing
    print(f"{kills} kills in {folders} folders")


def test_a_killed_notebook_is_named_at_the_end(calm, runs):
    process, dense = start(runs), runs / "cheap" / "records" / "dense-seed0.json"
    until(lambda: dense.exists() and list(runs.glob(".trainings/*/resume.safetensors")))
    assert kill(runs, "kernel")
    assert process.wait(PATIENCE) == 1
    notebook = runs / "cheap" / "notebooks" / "control-seed0.ipynb"
    lines = printed(runs).splitlines()
    named = [k for k, line in enumerate(lines) if line.startswith("  failed: control-seed0: nbc")]
    assert len(named) == 2  # when it happens, and at the end
    for k in named:
        assert "DeadKernelError: Kernel died" in lines[k] and lines[k + 1].strip() == str(notebook)
    assert "1 of 1 missing" in printed(runs) and notebook.exists()
    assert lines[-1].startswith("cheap: 1 of 2 runs done, 1 failed; `make resume STUDY=cheap`")
    assert (runs / "cheap" / "figures" / "perplexity.png").exists()
    assert finished(runs) == 0 and outcome(runs) == outcome(calm[0])


def test_a_run_that_was_killed_just_after_its_record_is_not_made_again(calm, runs):
    process = start(runs)
    folder = runs / "cheap" / "records"
    until(lambda: any(folder.glob("*.json")))
    kill(runs, "everything")  # before its papermill has ended, and Snakemake has noted it
    process.wait(PATIENCE)
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert made and any((runs / "cheap" / ".snakemake" / "incomplete").iterdir())
    assert finished(runs) == 0
    assert made == {name: (folder / name).stat().st_mtime_ns for name in made}
    assert outcome(runs) == outcome(calm[0])


def test_kill_everything_and_start_without_resume(calm, runs):
    process = start(runs)
    until(lambda: list(runs.glob(".trainings/*/resume.safetensors")))
    assert kill(runs, "everything") > 3
    process.wait()
    assert finished(runs, "study") == 1
    message = "error: study: 'cheap' was killed; `make resume STUDY=cheap` goes on where it was"
    assert printed(runs).splitlines()[-1] == message
    assert finished(runs) == 0 and outcome(runs) == outcome(calm[0])


def test_a_kernel_does_not_outlive_its_papermill(runs):
    start(runs)
    until(lambda: list(runs.glob(".trainings/*/resume.safetensors")))
    assert processes(runs, "kernel")
    kill(runs, "snakemake")
    kill(runs, "papermill")
    until(lambda: not processes(runs, "kernel"), 30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(calm, runs, number):
    process = start(runs)
    until(lambda: list(runs.glob(".trainings/*/resume.safetensors")))
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(PATIENCE) == 1
    assert printed(runs).splitlines()[-1].endswith("`make resume STUDY=cheap` goes on")
    until(lambda: not processes(runs), 30)
    assert finished(runs, "study") == 0 and outcome(runs) == outcome(calm[0])


def test_disk_full(calm, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        cheap_study(tmp_path)
        filler = tmp_path / "filler"
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        filler.write_bytes(bytes(free - 400_000))
        assert finished(tmp_path, "study") == 1
        filler.unlink()
        assert finished(tmp_path) == 0 and outcome(tmp_path) == outcome(calm[0])
    finally:
        kill(tmp_path, "everything")
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)


def test_a_run_made_again_is_equal_to_the_last_bit(calm):
    """With all it stands on, though the machine has more threads than it was made with."""
    words = [sys.executable, "-m", "prunegpt_utils", "rerun", "cheap/control-seed0"]
    environment = os.environ | {"PRUNEGPT_RUNS": str(calm[0])}
    again = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0 and "WARNING" not in again.stderr, again.stderr
    assert again.stdout.splitlines()[-1] == "cheap/control-seed0: equal to the last bit"


def test_clock_set_back(calm):
    """A record from the future makes nothing that stands on it look out of date."""
    runs, _ = calm
    folder = runs / "cheap" / "records"
    before = {file.name: file.read_bytes() for file in folder.glob("*.json")}
    later = time.time() + 3600
    os.utime(folder / "dense-seed0.json", (later, later))
    assert finished(runs, "study") == 0
    assert {file.name: file.read_bytes() for file in folder.glob("*.json")} == before
