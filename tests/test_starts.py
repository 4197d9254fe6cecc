"""A study that cannot start says why; what people's machines are like is no reason."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ONE_THREAD, ROOT, cheap_study, measured

from prunegpt_utils import __main__ as commands
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import acquire
from prunegpt_utils.runs import activity, expansion, paths, records, scheduler, status, study_files

CHEAP = "study: cheap\nnotebooks: {01_baselines: {dense: {steps: 2}}}\n"


def start(runs, *options, cwd=ROOT, **variables):
    """Start the study `cheap` as `make` does; (exit code, what is printed, log of Snakemake)."""
    words = [
        sys.executable, "-m", "prunegpt_utils", "study", "cheap", "0", "--profile",
        "studies/profiles/local", "--cores", "1", *options,
    ]  # fmt: skip
    environment = os.environ | ONE_THREAD | variables
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    log = runs / "cheap" / "logs" / "snakemake.log"
    return done.returncode, done.stdout + done.stderr, log.read_text() if log.exists() else ""


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / 'it\'s {my} "runs" [x] $HOME'
    (folder / "cheap").mkdir(parents=True)
    (folder / "cheap" / "study.yaml").write_text(CHEAP)
    return folder


def test_folders_as_people_name_them(runs):
    """Snakemake plans all runs there; it works in another folder than the command."""
    variables = {"HOME": "/proc/none", "XDG_CACHE_HOME": ""}
    relative = os.path.relpath(runs, ROOT)
    _, printed, log = start(runs, "--dry-run", PRUNEGPT_RUNS=relative, **variables)
    assert "total" in printed and "wildcards: run=dense-seed0" in printed, log
    assert "Error" not in log and "failed: " not in printed


def test_home_is_expanded_in_the_folder_of_the_runs(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PRUNEGPT_RUNS", "~/runs")
    assert str(paths.study_folder("x")) == "/home/me/runs/x"
    assert scheduler._environment(paths.study_folder("x"))["PRUNEGPT_RUNS"] == "/home/me/runs"


def test_a_start_that_fails_is_told_in_the_words_of_snakemake(runs):
    code, printed, _ = start(runs, "--no-such-option", PRUNEGPT_RUNS=str(runs))
    assert code == 1 and "Traceback" not in printed
    assert "error: unrecognized arguments: --no-such-option" in printed
    assert "  failed: " in printed and str(runs / "cheap" / "logs" / "snakemake.log") in printed


@pytest.mark.system
def test_a_project_in_a_folder_with_any_name_makes_a_study(tmp_path):
    """Snakemake and papermill both put parameters in for what stands between braces."""
    project = tmp_path / 'a b\'s {x} "y" [z] $q'
    for part in ("prunegpt_utils", "notebooks", "studies"):
        shutil.copytree(ROOT / part, project / part)
    folder = cheap_study(project / "runs")
    variables = {"PRUNEGPT_RUNS": "runs", "HOME": "/proc/none"}
    code, printed, log = start(project / "runs", cwd=project, **variables)
    assert code == 0 and (folder / "report" / "index.html").exists(), printed + log


LOGS = {
    'WildcardError in rule results in file "S", line 60:\nWildcards in input files:\n\'x\'\n':
        'WildcardError in rule results in file "S", line 60: Wildcards in input files: \'x\'',
    "Traceback (most recent call last):\n  File x\nFileNotFoundError: [Errno 2] none\n":
        "FileNotFoundError: [Errno 2] none",
    "/usr/bin/python3: No module named snakemake\n": "/usr/bin/python3: No module named snakemake",
    "Error in rule run:\n  message: NODE_FAIL\n  jobid: 3\nWorkflowError:\nAt least one job did not "
    "complete successfully.\n": "Error in rule run: message: NODE_FAIL jobid: 3",
    "": "",
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), LOGS.items())
def test_the_last_words_of_snakemake(runs_folder, text, words):
    log = runs_folder / "cheap" / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    assert scheduler.complaint("cheap") == (words, log)


def test_a_home_that_cannot_be_written_is_read_nevertheless(tmp_path, monkeypatch):
    """What the hub's client has stored there is found; what is new goes to the study's folder."""
    monkeypatch.setattr(paths, "check_writable", refuse)
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "HF_HOME" not in scheduler._environment(tmp_path / "runs" / "x")
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    found = scheduler._environment(tmp_path / "runs" / "x")
    assert found["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    assert found["XDG_CACHE_HOME"] == str(tmp_path / "runs" / "x" / ".cache")
    monkeypatch.setenv("HF_HOME", "/mine")
    assert scheduler._environment(tmp_path)["HF_HOME"] == "/mine"


def refuse(folder):
    raise ParameterError("results folder", str(folder), "cannot be written")


@pytest.mark.parametrize("command", ["study", "resume"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, command, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as left:
        commands.main([command, "pydocs", "0", "--cores", "1"])
    assert str(left.value.code).startswith("error: results folder: ")
    assert len(str(left.value.code).splitlines()) == 1


def test_a_full_disk_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "records/x.json")

    monkeypatch.setattr(scheduler, "run", full)
    with pytest.raises(SystemExit, match="^error: .*No space left on device: 'records/x.json'$"):
        commands.main(["study", "pydocs", "0"])


def test_a_study_called_by_a_number_is_not_taken_for_one(runs_folder, monkeypatch):
    started = []
    monkeypatch.setattr(scheduler, "_wait", lambda command: started.append(command[-1]) or 0)
    (runs_folder / "007").mkdir(parents=True)
    (runs_folder / "007" / "study.yaml").write_text(CHEAP.replace("cheap", "'007'"))
    assert list(scheduler.run(["007"], [])) == [("007", 0)] and started == ['study="007"']


def test_status_knows_what_a_run_does_that_trains_nothing(runs_folder):
    """As long as its process lives, however long that takes, and no longer."""
    path = paths.activity(runs_folder / "smoke", "dense-seed0")
    assert status.running("smoke") == {}
    with acquire(path):
        path.write_text("The whole model, cut at once\n")
        os.utime(path, (time.time() - 7200,) * 2)
        assert status.running("smoke") == {
            "dense-seed0": "dense-seed0: The whole model, cut at once, for 120 min"
        }
    assert status.running("smoke") == {}  # killed, or ended: the lock has gone with it


def test_a_run_holds_its_file_until_its_record_is_written(runs_folder):
    spec = expansion.plan("smoke")["dense-seed0"]
    for _ in range(2):  # a reader may run the first cell twice
        run = records.open_run(spec.notebook, spec.parameters)
        assert status.running("smoke") == {"dense-seed0": "dense-seed0: begins, for 0 min"}
    records.write(run, **measured())
    assert status.running("smoke") == {} and not run.activity.exists()


def test_the_part_of_the_notebook_is_named():
    headings = study_files.headings("06_criteria")
    cell = next(
        source for source in headings if "cut_at_once(criterion, scope, sparsity)\n" in source
    )
    assert headings[cell] == "The whole model, cut at once"


def test_a_kernel_notes_each_cell(tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell, path = InteractiveShell(), tmp_path / "x.txt"
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    activity.begin(path, {"a = 1": "The first part"})
    for cell, text in (("a = 1", "The first part"), ("b = 2\nc = 3", "b = 2")):
        shell.run_cell(cell, silent=False)
        assert activity.read(path) == f"{text}, for 0 min"
    activity.end(path)
    shell.run_cell("d = 4")
    assert not path.exists() and activity.read(path) == ""


def test_a_run_that_has_just_been_started_is_not_called_dead(runs_folder):
    log = runs_folder / "smoke" / "logs" / "dense-seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("Executing notebook\n")
    assert status.running("smoke") == {"dense-seed0": "dense-seed0: begins"}
    os.utime(log, (time.time() - 300,) * 2)
    assert status.running("smoke") == {}
    assert status.failed("smoke") == {"dense-seed0": "was killed, or never began"}
