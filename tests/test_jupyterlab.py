"""JupyterLab as a reader has it: a notebook runs from top to bottom."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from conftest import ONE_THREAD, ROOT, small_text

from prunegpt_utils.runs import records

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium"),
]
SMALL = {
    "init_from": '""',
    "one_shot_run": '""',
    "reference": '""',
    "steps": "2",
    "batch": "2",
    "block_size": "64",
    "study": '"lab"',
}


@contextmanager
def server(command, folder, home):
    """A server on loopback, run in `folder`, with settings of its own; yields address and token."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), home / "server.log"
    places = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    environment = {f"JUPYTER_{place}": str(home / place.lower()) for place in places}
    environment |= {
        f"JUPYTERLAB_{part}_DIR": str(home / part) for part in ("SETTINGS", "WORKSPACES")
    }
    # a browser draws no cell that is out of sight, and its text cannot be waited for
    settings = home / "SETTINGS" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment |= ONE_THREAD | {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    options = [
        "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
    ]  # fmt: skip
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *options], cwd=folder, env=os.environ | environment, stdout=written,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", process, log)
            yield f"http://127.0.0.1:{port}", token
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(address, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    shown = browser.new_page(viewport={"width": 1280, "height": 900})
    shown.set_default_timeout(240_000)
    sync_api.expect.set_options(timeout=240_000)
    yield shown
    shown.close()


def small_notebook(folder):
    """Notebook 02 with smoke parameters in its parameters cell, and a small text beside it."""
    text = small_text(folder / "text")
    notebook = nbformat.read(ROOT / "notebooks" / "02_pruning.ipynb", 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in (SMALL | {"data": f'"{text}"'}).items():
        cell.source, times = re.subn(
            rf"^({name}: \w+ = ).+?(  #.*)$",
            lambda m, v=value: m[1] + v + m[2],
            cell.source,
            flags=re.M,
        )
        assert times == 1, name
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "02_pruning.ipynb")


def test_all_cells_of_a_notebook_run(page, tmp_path, runs_folder):
    """Open, Run All Cells, see the figures and the last line."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    small_notebook(folder)
    with server([sys.executable, "-m", "jupyterlab"], folder, tmp_path) as (address, token):
        page.goto(f"{address}/lab/tree/02_pruning.ipynb?token={token}")
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        assert not page.locator(".jp-RenderedImage img").count()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        last = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
        sync_api.expect(last).to_contain_text("gradual-s90-seed0: validation", timeout=900_000)
        figures = page.locator(".jp-RenderedImage img")
        assert figures.count() >= 4
        for index in range(figures.count()):
            figures.nth(index).scroll_into_view_if_needed()
            assert figures.nth(index).evaluate("image => image.naturalWidth") > 300
        page.screenshot(path=tmp_path / "notebook.png")
        assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()
        bars = page.get_by_text(re.compile(r"gradual-s90-seed0: 100%.* 2/2 steps"))
        assert bars.count() == 1  # one line, rewritten in place
    record = records.read(runs_folder / "lab" / "records" / "gradual-s90-seed0.json")
    assert record["training"]["steps"] == 2
    assert record["sparsity"]["prunable"] == pytest.approx(0.9, abs=1e-3)
