"""The report in a real browser: nothing is fetched, it sorts, it can be read by everybody."""

import shutil
import subprocess

import pytest
from test_report import write_study

from prunegpt_utils.report import html

pytestmark = pytest.mark.system
AXE = "axe-core@4.14.1"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PAGES = ["index", "gradual-s90-seed0", "records/gradual-s90-seed0"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGPT_RUNS", str(runs))
        write_study(runs)
        return html.build("trial")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine (on Debian: the package chromium)")
    with sync_playwright() as playwright:
        # no sandbox: it needs rights that a container or root does not have; the pages are our own
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, from which axe-core comes")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", AXE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {AXE}: {done.stderr.strip().splitlines()[-1:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.fixture
def visit(browser, index):
    """Opens a page of the report; afterwards the console is empty and nothing was fetched."""
    contexts, messages = [], []

    def opened(name="index", **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(240_000)  # of a machine that is busy with a study
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else messages.append(r.url),
        )
        page.goto((index.parent / f"{name}.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation_of_level_a_or_aa(visit, axe, name, scheme):
    page = visit(name, color_scheme=scheme)
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", WCAG)
    assert found["passes"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_needs_no_sideways_scrolling_of_the_page(visit, name):
    page = visit(name, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_published_report_opens_in_two_seconds(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    index = html.build("pydocs-full")
    assert index.stat().st_size < 5e6
    page, milliseconds = browser.new_page(), []
    for _ in range(3):
        page.goto(index.as_uri())
        navigation = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        milliseconds.append(page.evaluate(navigation))
    page.close()
    assert 0 < min(milliseconds) < 2000


def column(page, number):
    return page.locator(f"table.sortable tbody tr > :nth-child({number})").all_inner_texts()


def test_a_click_sorts_and_another_one_turns_it_around(visit):
    page = visit()
    heading = page.get_by_role("columnheader", name="perplexity")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in column(page, 3)]
    assert len(values) == 5 and values == sorted(values)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(page, 3)] == sorted(values, reverse=True)
    assert page.locator("[aria-sort]").count() == 1


def test_the_keyboard_sorts_too(visit):
    page = visit()
    button = page.get_by_role("columnheader", name="model").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    names = column(page, 1)
    assert names == sorted(names) and names[0].startswith("dense control")


def test_without_scripts_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("table.sortable tbody tr").count() == 5
    assert page.get_by_role("button").count() == 0
    assert page.get_by_text("90 % of the block weights gone").is_visible()


def test_a_number_is_one_click_from_its_record(visit):
    page = visit()
    page.locator("table.sortable a", has_text="25.00").click()
    assert page.locator("h1").inner_text() == "gradual-distilled-s90-seed0"


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_is_dark_and_paper_is_white(visit):
    assert background(visit(color_scheme="light")) == "rgb(255, 255, 255)"
    page = visit(color_scheme="dark")
    assert max(map(int, background(page)[4:-1].split(","))) < 40
    page.emulate_media(media="print")
    assert background(page) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
