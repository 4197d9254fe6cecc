"""What may import what, and what a quick command does not wait for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

HELP = """
import runpy, sys
sys.argv = ["prunegpt_utils", sys.argv[1], "--help"]
try:
    runpy.run_module("prunegpt_utils", run_name="__main__")
except SystemExit as end:
    print("code", end.code)
"""
LOADED = """
import sys
print("loaded", *[name for name in ("torch", "pandas") if name in sys.modules])
"""


def last_line(code, *arguments):
    """What Python code prints at the end, run in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", ["plan", "status", "check-results"])
def test_help_of_a_command_loads_neither_torch_nor_pandas(command):
    assert last_line(HELP, command) == "code 0"
    assert last_line(HELP + LOADED, command) == "loaded"


def test_planning_loads_neither_torch_nor_pandas():
    assert last_line("from prunegpt_utils.runs import expansion" + LOADED) == "loaded"


def test_papermill_starts_without_parsing_a_grammar():
    """jsonschema 4.25 and newer do when they are imported, which takes longer than all the rest."""
    code = 'import papermill.cli, sys; print([name for name in sys.modules if name == "lark"])'
    assert last_line(code) == "[]"


def lint_imports(folder):
    """The import rules of the project, applied to the package in `folder`."""
    script = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [script, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_each_room_imports_only_those_before_it():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        ("masks.py", "import pandas"),
        ("files.py", "def late():\n    import yaml"),
        ("criteria.py", "from prunegpt_utils import training"),
        ("runs/status.py", "from prunegpt_utils.report import tables"),
    ],
)
def test_a_wrong_import_breaks_the_rules(tmp_path, module, wrong):
    unseen = shutil.ignore_patterns("__pycache__", "pydocs-base")
    shutil.copytree(ROOT / "prunegpt_utils", tmp_path / "prunegpt_utils", ignore=unseen)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "prunegpt_utils" / module).open("a") as file:
        file.write(f"\n{wrong}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "1 broken" in done.stdout, done.stdout + done.stderr
