"""The report in a real browser: nothing is fetched, it sorts, it can be read by everybody."""

import shutil
import subprocess

import pytest
from test_report import write_study
from test_share import write_models

from prunegpt_utils.report import html, share

pytestmark = pytest.mark.system
AXE = "axe-core@4.14.1"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PAGES = ["index", "gradual-s90-seed0", "records/gradual-s90-seed0", "../share"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGPT_RUNS", str(runs))
        write_models(runs, write_study(runs))
        share.build("trial")
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

    def opened(name="index", fragment="", **settings):
        context = browser.new_context(reduced_motion="reduce", **settings)
        contexts.append(context)
        context.set_default_timeout(240_000)  # of a machine that is busy with a study
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else messages.append(r.url),
        )
        page.goto((index.parent / f"{name}.html").as_uri() + fragment)
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
    # without preload: it would ask for the style sheet once more, which the page forbids
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, preload: false})", WCAG)
    assert found["passes"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_an_open_record(visit, axe, scheme):
    page = visit("../share", "#record-gradual-s90-seed0", color_scheme=scheme)
    assert page.get_by_role("dialog", name="gradual-s90-seed0").is_visible()
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, preload: false})", WCAG)
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


def test_the_shared_full_study_can_be_used_in_two_seconds(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    shared = share.build("pydocs-full")
    assert shared.stat().st_size <= share.LIMIT == 5e6
    page, milliseconds = browser.new_page(), []
    for _ in range(3):
        page.goto(shared.as_uri())
        page.locator("#plot [data-run]").first.wait_for()  # drawn, so all that answers is there
        milliseconds.append(page.evaluate("performance.now()"))
    page.close()
    assert 0 < min(milliseconds) < 2000


def test_a_mark_finds_its_row_and_a_row_its_marks(visit):
    page = visit("../share")
    mark = page.locator("#plot [data-run='gradual-distilled-s90-seed1']")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#plot [aria-label=tip] text")
    tip.wait_for()
    for text in ("gradual + teacher", "90 % gone, seed 1", "record gradual-distilled-s90-seed1"):
        assert text in tip.text_content()
    page.mouse.down()
    page.mouse.up()
    row = page.locator("table.sortable tr.picked")
    assert row.get_attribute("data-runs").split()[1] == "gradual-distilled-s90-seed1"
    assert (
        "gradual-distilled-s90-seed1: gradual + teacher"
        in page.get_by_role("status").first.inner_text()
    )
    page.get_by_role("button", name="dense control: fine-tuned").click()
    assert row.count() == 1 and row.get_attribute("data-runs").startswith("control-seed0")
    inside = "document.querySelector('#plot').getBoundingClientRect().bottom > 0"
    page.wait_for_function(f"{inside} && scrollY > 0")
    assert page.locator("#plot .one").get_attribute("data-run") == "control-seed0"
    assert page.locator("#plot .same").get_attribute("data-run") == "control-seed1"


def test_marks_answer_the_keyboard(visit):
    page = visit("../share")
    page.locator("#plot [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.dataset.run")
    page.keyboard.press("Enter")
    assert page.locator("#plot .one").get_attribute("data-run") == focused
    assert page.locator("#plot [tabindex='0']").count() == 1


def test_the_slider_changes_all_parts_together(visit):
    page, seen = visit("../share"), []
    slider = page.get_by_role("slider", name="Block weights gone")
    slider.focus()
    page.keyboard.press("Home")
    for gone in ("none: dense", "50 %", "90 %"):
        assert slider.get_attribute("aria-valuetext") == gone
        parts = [page.locator(f"#{part}").inner_html() for part in
                 ("level-name", "numbers", "written", "read", "layers", "masks")]  # fmt: skip
        assert "-seed0" in parts[1] or gone == "none: dense"
        seen.append(parts)
        page.keyboard.press("ArrowRight")
    for before, after in ((0, 1), (1, 2)):
        changed = [old != new for old, new in zip(seen[before], seen[after], strict=True)]
        assert all(changed), changed
    assert "KL divergence" in seen[2][1] and "test perplexity" in seen[2][1]
    page.locator("#levels span", has_text="50 %").click()
    assert slider.get_attribute("aria-valuetext") == "50 %"
    assert "rgba(var(--worse), 0.26)" in seen[2][3]  # 1 to 2 nats above the dense model
    assert '<img class="mask" src="data:image/png' in seen[2][5]


def test_each_number_opens_its_record_in_the_page(visit):
    page = visit("../share")
    page.locator("table.sortable a", has_text="27.00").click()
    dialog = page.get_by_role("dialog", name="gradual-distilled-s90-seed0")
    dialog.wait_for()
    assert "make rerun RUN=trial/gradual-distilled-s90-seed0" in dialog.inner_text()
    dialog.get_by_role("link", name="gradual-distilled-s90-seed1").click()
    page.get_by_role("dialog", name="gradual-distilled-s90-seed1").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url("**/share.html")
    page.get_by_role("dialog").wait_for(state="hidden")
    row = page.locator("tr[data-runs^='gradual-distilled-s90']")
    row.get_by_text("27.50 ± 0.71").click()  # a mean leads there too
    page.get_by_role("dialog").wait_for()


def test_commands_are_copied(visit):
    page = visit("../share", permissions=["clipboard-read", "clipboard-write"])
    row = page.locator("table.sortable tr[data-runs^='gradual-s90']")
    row.get_by_role("button", name="Copy").click()
    row.get_by_text("Copied").wait_for()
    commands = [f"make rerun RUN=trial/gradual-s90-seed{seed}" for seed in (0, 1)]
    assert page.evaluate("navigator.clipboard.readText()") == " && ".join(commands)


def test_the_table_is_filtered_and_stacked_on_a_phone(visit):
    page = visit("../share", viewport={"width": 390, "height": 844})
    page.get_by_role("searchbox").fill("teacher, 90%")
    rows = page.locator("table.sortable tbody tr")
    assert [row.is_visible() for row in rows.all()].count(True) == 1
    assert page.locator("#matches").inner_text() == "1 of 5 rows"
    cells = page.locator("tr[data-runs^='gradual-distilled-s90'] > *")
    name, *others = [cell.bounding_box() for cell in cells.all() if cell.is_visible()]
    assert len(others) >= 5 and len({round(box["x"]) for box in others}) == 1
    assert all(name["x"] + name["width"] <= box["x"] + 1 for box in others)
    assert [box["y"] for box in others] == sorted({box["y"] for box in others})


def test_without_scripts_the_shared_page_has_answer_figure_and_table(visit):
    page = visit("../share", java_script_enabled=False)
    assert page.locator("table.sortable tbody tr").count() == 5
    assert page.get_by_text("90 % of the block weights gone").first.is_visible()
    assert page.locator("noscript img").first.is_visible()
    assert not page.locator("#plot").is_visible() and not page.get_by_role("slider").count()
    assert page.get_by_role("button").count() == 0


def column(page, number):
    return page.locator(f"table.sortable tbody tr > :nth-child({number})").all_inner_texts()


def test_a_click_sorts_and_another_one_turns_it_around(visit):
    page = visit()
    heading = page.get_by_role("columnheader", name="test", exact=True)
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


def test_a_checkbox_shows_and_hides_its_columns(visit):
    page = visit()
    heading = page.get_by_role("columnheader", name="x control (test)")
    assert not heading.is_visible()
    box = page.get_by_role("checkbox", name="compared with the dense control")
    box.check()
    assert heading.is_visible()
    box.uncheck()
    assert not heading.is_visible()


def test_without_scripts_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("table.sortable tbody tr").count() == 5
    assert page.get_by_role("button").count() == 0
    assert page.get_by_text("90 % of the block weights gone").is_visible()


def test_a_number_is_one_click_from_its_record(visit):
    page = visit()
    page.locator("table.sortable a", has_text="27.00").click()
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
