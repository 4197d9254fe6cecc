"""What a newcomer types, and what is said when the machine lacks something."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT


def make(folder, *words):
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def bare(tmp_path):
    """A checkout without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def fake_python(folder, script):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_help_is_the_default_and_lists_every_target():
    shown = make(ROOT).stdout
    assert shown == make(ROOT, "help").stdout
    for target in (
        "study",
        "test",
        "lab",
        "notebooks",
        "report",
        "share",
        "publish",
        "lint",
        "resume",
        "clean",
    ):
        assert f"make {target} " in shown


@pytest.mark.parametrize("target", ["study", "test"])
def test_a_python_that_is_too_old_is_one_line(bare, target):
    old = fake_python(bare, "exit 1")
    done = make(bare, target, f"PYTHON={old}")
    assert done.returncode != 0 and not (bare / ".venv").exists()
    assert (
        done.stdout.strip()
        == f"error: PYTHON: '{old}' must be Python 3.11 or newer; name one with PYTHON=..."
    )


def test_a_missing_venv_module_is_one_line(bare):
    half = fake_python(bare, 'case "$*" in *venv*) exit 1;; esac')
    done = make(bare, "study", f"PYTHON={half}")
    assert done.returncode != 0 and not (bare / ".venv").exists()
    assert done.stdout.strip().startswith(f"error: PYTHON: '{half}' must have the venv module")


def test_an_unknown_study_is_one_line(runs_folder):
    done = make(ROOT, "study", "STUDY=pydoc")
    assert done.returncode != 0 and not runs_folder.exists()
    assert "error: study: 'pydoc' must be one of " in done.stderr and "Traceback" not in done.stderr


def active(folder, script):
    """`make ENV=active ...` where the active environment's python is `script`."""
    environment = folder / "environment"
    environment.mkdir()
    python = fake_python(environment, script)
    path = f"PATH={environment}:{os.environ['PATH']}"
    command = ["env", path, "make", "--no-print-directory", "ENV=active"]

    def run(*words):
        return subprocess.run(
            [*command, *words], cwd=folder, capture_output=True, text=True, check=False
        )

    return run, python


def test_an_active_environment_is_used_and_nothing_is_installed(bare):
    run, python = active(bare, 'echo "$0 $*"')
    done = run("plan", "STUDY=mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{python} -m prunegpt_utils plan mine"
    assert not (bare / ".venv" / "installed").exists()
    assert not (bare / ".venv" / "bin").exists()


def test_an_active_environment_without_the_packages_is_one_line(bare):
    run, python = active(bare, 'echo "No module named torch" >&2; exit 1')
    done = run("study")
    assert done.returncode != 0
    assert done.stdout.strip() == (
        "error: ENV: 'active' must be an environment with the packages of environment.yml; "
        f"{python} says: No module named torch"
    )
