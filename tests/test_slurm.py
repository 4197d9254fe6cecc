"""A study on a real Slurm: Debian's daemons on this machine's loopback, the profile as it ships."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ONE_THREAD, ROOT, cheap_study

from prunegpt_utils.runs import records, validation

pytestmark = pytest.mark.system
CONFIGURATION = Path("/etc/slurm/slurm.conf")  # where Debian's programs look
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
PATIENCE = 1800  # seconds; three minutes do on an idle machine
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "munged"]
SETTINGS = """
ClusterName=prunegpt
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def call(*words, **options):
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def installed():
    """Whether Slurm and Snakemake's plugin for it are there, installed now if need be."""
    if not all(map(shutil.which, PROGRAMS)):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        call("apt-get", "update", "-qq", env=quiet)
        call("apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES, env=quiet)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    plugin = "snakemake-executor-plugin-slurm"
    if call(sys.executable, "-m", "pip", "show", plugin).returncode:
        call(*pip, plugin)
    return all(map(shutil.which, PROGRAMS))


def free_ports():
    """Two ports in a row that nobody listens on."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


def stop(pid_file):
    """End the daemon that wrote the file, and wait for it."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One controller and one node, on ports and in folders of their own."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("Slurm's daemons are started by root on Debian")
    if CONFIGURATION.exists():
        pytest.skip("this machine belongs to a cluster already")
    if not installed():
        pytest.skip("Slurm could not be installed")
    folder, host, port = (
        tmp_path_factory.mktemp("slurm"),
        socket.gethostname().split(".")[0],
        free_ports(),
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    CONFIGURATION.write_text(SETTINGS.format(
        host=host, user=getpass.getuser(), port=port, next_port=port + 1, folder=folder,
        cores=os.cpu_count(), memory=psutil.virtual_memory().total // 2**21,
    ))  # fmt: skip
    munge_pid, own_munge = Path("/run/munge/munged.pid"), call("munge", "-n").returncode
    try:
        if own_munge:
            munge_pid.parent.mkdir(mode=0o755, exist_ok=True)
            shutil.chown(munge_pid.parent, "munge", "munge")
            done = call("runuser", "-u", "munge", "--", "munged")
            assert done.returncode == 0, done.stderr
        for daemon in (["slurmctld"], ["slurmd", "-N", host]):
            done = call(*daemon)
            assert done.returncode == 0, done.stderr
        for _ in range(600):
            if "idle" in call("sinfo", "--noheader").stdout:
                break
            time.sleep(0.1)
        else:
            pytest.fail(call("sinfo").stdout + (folder / "slurmctld.log").read_text()[-2000:])
        yield folder
    finally:
        for name in ("slurmd", "slurmctld"):
            stop(folder / f"{name}.pid")
        if own_munge:
            stop(munge_pid)
        CONFIGURATION.unlink()


@pytest.fixture
def make(tmp_path):
    """A function that starts `make`; what it started ends with the test."""
    started = []

    def start(target):
        started.append(_make(tmp_path, target))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    call("scancel", "--user", getpass.getuser())


def _make(runs, target):
    environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(runs)}
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    words = [
        "make", "--no-print-directory", target, "STUDY=cheap", "PROFILE=slurm",
        f"PYTHON={sys.executable}", "SLURM=mem_mb=2000 runtime=20",
    ]  # fmt: skip
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def jobs():
    """Numbers of the jobs that Slurm runs now."""
    return call("squeue", "--noheader", "--states=RUNNING", "--format=%i").stdout.split()


def test_a_study_through_slurm_and_a_job_that_is_cancelled(cluster, make, tmp_path, monkeypatch):
    folder = cheap_study(tmp_path)
    first = make("study")
    end = time.monotonic() + PATIENCE
    # as soon as it runs: its training is so small that it may end before anyone has seen it
    while not (running := jobs()) and first.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert call("scancel", *running).returncode == 0, first.communicate()[0]
    output, _ = first.communicate(timeout=PATIENCE)
    if first.returncode:
        output, _ = (again := make("resume")).communicate(timeout=PATIENCE)
        assert again.returncode == 0, output
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    found, _ = records.read_study("cheap")
    assert {record["run"] for record in found} == {"dense-seed0", "control-seed0"}, output
    assert [line for line in validation.validate("cheap") if "not committed" not in line] == []
    log = (cluster / "slurmctld.log").read_text()
    assert (
        log.count("_slurm_rpc_submit_batch_job: JobId=") >= 5
    )  # four, and the cancelled one again
    assert (folder / "report" / "index.html").exists()
