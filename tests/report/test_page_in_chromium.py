"""The page in a real browser, opened from disk: it draws, answers, asks for nothing, and obeys no name."""

import io
import itertools
import shutil
from collections import defaultdict
from dataclasses import replace

import pytest
from markup_payloads import PAYLOADS
from PIL import Image
from synthetic_contents import contents_of, small, synthetic_analysis, synthetic_run, with_texts, without_evaluation

from maskperf.files import write_text
from maskperf.report.page import page_text
from maskperf.schema import StepLine

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright cannot be imported")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TREE = """() => {
  const tree = (node) => [node.tagName, Array.from(node.attributes, (entry) => entry.name).sort(),
    node.classList.contains("plot") ? [] : Array.from(node.children, tree)];
  return JSON.stringify(tree(document.body));
}"""
TAGS_IN_PLOTS = (
    "() => Array.from(new Set(Array.from(document.querySelectorAll('.plot *'), (node) => node.tagName))).sort()"
)
DRAWN = "() => document.querySelectorAll('.plot .main-svg .scatterlayer .trace').length"


def write_page(contents, path):
    write_text(path, page_text(contents))


class Visit:
    """A page in the browser, with everything that must not happen written down."""

    def __init__(self, browser, path, *, viewport=LAPTOP, theme="light"):
        self.page = browser.new_context(viewport=viewport, color_scheme=theme).new_page()
        self.problems = []
        self.address = path.as_uri()
        for event in ("console", "pageerror", "dialog", "popup", "request"):
            self.page.on(event, lambda what, event=event: self.note(event, what))
        self.page.goto(self.address)
        self.page.wait_for_function(
            "() => document.querySelectorAll('.plot .main-svg').length > 0 || !document.querySelector('.plot')"
        )

    def note(self, event, what):
        if event == "dialog":
            what.dismiss()
        if event != "request" or (what.url != self.address and not what.url.startswith("data:")):
            self.problems.append(f"{event}: {what}")


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def laptop(browser, folder):
    path = folder / "report of one & another.html"
    write_page(contents_of(synthetic_run(), compared=(synthetic_run("other", 4, minutes=25.0),)), path)
    return Visit(browser, path)


@pytest.fixture(scope="module")
def phone(browser, folder):
    path = folder / "phone.html"
    run = synthetic_run()
    few = {"analysis": synthetic_analysis(), "stats": (("AP", 0.4, 0.3),)}
    contents = contents_of(replace(run, rules=run.rules * 3, **few), compared=(synthetic_run("other", 1, rules=()),))
    write_page(with_texts(contents, lambda text: f"{text} {'a-long-name-without-a-space' * 4}"), path)
    return Visit(browser, path, viewport=PHONE, theme="dark")


def test_plots_are_drawn_with_a_line_for_each_run(laptop):
    assert laptop.page.locator(".plot").count() == 11
    assert laptop.page.locator(".plot .main-svg .cartesianlayer").count() == 11
    assert laptop.page.evaluate(DRAWN) == 2 * 11 + 2 * 2  # two runs in each, and the band in two of them


def test_a_compared_run_is_dashed(laptop):
    dashes = laptop.page.locator("#plot-total .trace path.js-line")
    styles = [dashes.nth(index).evaluate("(line) => line.style.strokeDasharray") for index in range(2)]
    assert bool(styles[0]) is False and bool(styles[1]) is True


def test_the_page_is_not_blank(laptop):
    picture = Image.open(io.BytesIO(laptop.page.screenshot(full_page=True))).convert("RGB")
    assert picture.height > 3000
    for top in range(0, picture.height - 1000, 1000):
        assert len(picture.crop((0, top, 1280, top + 1000)).getcolors(1 << 24)) > 40


def test_pointing_at_a_plot_shows_a_label(laptop):
    plot = laptop.page.locator("#plot-total")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    laptop.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    laptop.page.wait_for_function("() => document.querySelectorAll('#plot-total .hoverlayer text').length > 0")
    assert "run_0" in laptop.page.locator("#plot-total .hoverlayer").text_content()
    laptop.page.mouse.move(0, 0)


def test_the_axis_can_be_minutes(laptop):
    title = laptop.page.locator("#plot-box_ap .xtitle")
    assert title.text_content() == "Epoch"
    laptop.page.get_by_role("button", name="Minutes", exact=True).first.click()
    assert laptop.page.locator("#plot-box_ap .xtitle").text_content() == "Minutes since run_start"
    assert laptop.page.locator('[data-axis="minutes"]').get_attribute("aria-pressed") == "true"
    laptop.page.locator('[data-axis="epochs"]').click()
    assert laptop.page.locator("#plot-box_ap .xtitle").text_content() == "Epoch"


def test_the_button_changes_the_theme_of_page_and_plots(laptop):
    def look():
        body = laptop.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return body, laptop.page.locator("#plot-total .xtitle").evaluate("(text) => getComputedStyle(text).fill")

    light = look()
    laptop.page.locator("#theme-button").focus()
    laptop.page.keyboard.press("Enter")
    dark = look()
    laptop.page.locator("#theme-button").click()
    assert light[0] != dark[0] and light[1] != dark[1] and look() == light


def test_a_table_is_sorted_by_the_head_that_is_pressed(laptop):
    table = laptop.page.locator(".classes-table").first

    def column(number):
        return table.evaluate(
            "(table, at) => Array.from(table.tBodies[0].rows, (row) => row.cells[at].textContent.trim())", number
        )

    table.get_by_role("button", name="Mask AP").click()
    falling = [float(text) for text in column(2)]
    assert falling == sorted(falling, reverse=True) and len(falling) == 20
    assert table.locator("th").nth(2).get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Mask AP").click()
    assert [float(text) for text in column(2)] == falling[::-1]
    table.get_by_role("button", name="Class").click()
    assert column(0) == sorted(column(0))


def test_a_long_table_is_short_until_it_is_asked_for(laptop):
    rows = laptop.page.locator(".places-table tbody tr")
    assert rows.count() == 24 and rows.locator("visible=true").count() == 9
    assert laptop.page.locator(".places-table .is-this").is_visible()
    laptop.page.get_by_role("button", name="Show all 24").click()
    assert rows.locator("visible=true").count() == 24


def test_a_run_can_be_hidden_in_all_plots(laptop):
    before = laptop.page.evaluate(DRAWN)
    button = laptop.page.locator('.legend-button[data-run="1"]').first
    button.click()
    assert laptop.page.evaluate(DRAWN) == before - 11 and button.get_attribute("aria-pressed") == "false"
    button.click()
    assert laptop.page.evaluate(DRAWN) == before


def test_choosing_a_run_shows_its_details_everywhere(laptop):
    laptop.page.locator("#settings .run-choice").select_option("1")
    assert laptop.page.locator('#system .run-panel[data-run="1"]').is_visible()
    assert not laptop.page.locator('#rules .run-panel[data-run="0"]').is_visible()
    laptop.page.locator("#rules .run-choice").select_option("0")
    assert laptop.page.locator('#system .run-panel[data-run="0"]').is_visible()


def test_a_picture_opens_in_a_dialog_and_escape_closes_it(laptop):
    dialog = laptop.page.locator("#picture-dialog")
    laptop.page.locator(".picture-button").first.click()
    assert dialog.is_visible()
    assert laptop.page.locator("#picture-large").evaluate("(image) => image.naturalWidth") == 900
    first = laptop.page.locator("#picture-caption").text_content()
    laptop.page.keyboard.press("ArrowRight")
    assert laptop.page.locator("#picture-caption").text_content() != first
    laptop.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_a_phone_needs_no_sideways_scrolling(phone):
    width = phone.page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    assert phone.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 25)"


def test_a_long_list_of_rules_is_short_on_a_phone_until_it_is_asked_for(phone):
    rows = phone.page.locator("#rules tbody tr")
    assert rows.count() == 24 and rows.locator("visible=true").count() == 15
    phone.page.locator("#rules .text-button").click()
    assert rows.locator("visible=true").count() == 24


def test_a_page_without_data_opens_as_well(browser, folder):
    path = folder / "empty.html"
    write_page(without_evaluation(), path)
    assert Visit(browser, path).problems == []


@pytest.mark.slow
def test_payloads_in_all_names_change_nothing(browser, folder):
    plain = folder / "plain.html"
    write_page(small(), plain)
    expected = Visit(browser, plain)
    for shift in (0, len(PAYLOADS) // 2):
        turn = itertools.cycle(PAYLOADS[shift:] + PAYLOADS[:shift])
        payload_of = defaultdict(lambda turn=turn: next(turn))  # equal texts stay equal: the page joins equal notes
        path = folder / f"hostile-{shift}.html"
        write_page(with_texts(small(), lambda text, known=payload_of: f"{known[text]} {text}"), path)
        assert len(payload_of) >= len(PAYLOADS)
        visit = Visit(browser, path)
        assert visit.page.evaluate(TREE) == expected.page.evaluate(TREE)
        assert visit.page.evaluate(TAGS_IN_PLOTS) == expected.page.evaluate(TAGS_IN_PLOTS)
        assert visit.problems == []


def test_names_of_runs_are_plain_text_in_the_label_of_a_plot(browser, folder):
    names = [PAYLOADS[0], PAYLOADS[13], PAYLOADS[14], "<b>x</b><br>y", "&lt;i&gt;", "${a} %{x} $y$"]
    losses = tuple(StepLine(step=point.step, epoch=0, total=point.total) for point in synthetic_run().losses[::20])
    run = synthetic_run(evaluations=(), categories=(), pictures=(), losses=losses)
    path = folder / "label.html"
    write_page(contents_of(*(replace(run, name=name) for name in names), places=()), path)
    visit = Visit(browser, path)
    visit.page.evaluate(
        "() => Plotly.Fx.hover('plot-total', [0, 1, 2, 3, 4, 5].map((curveNumber) => ({curveNumber, pointNumber: 5})))"
    )
    visit.page.wait_for_function("() => document.querySelectorAll('#plot-total .hoverlayer text').length > 0")
    text = visit.page.locator("#plot-total .hoverlayer").text_content()
    assert [name for name in names if name[:12] not in text] == []
    assert visit.page.locator(".plot a, .plot script, .plot img, .plot foreignObject").count() == 0
    assert visit.problems == []


def test_nothing_was_asked_for_and_nothing_complained(laptop, phone):
    assert laptop.problems == [] and phone.problems == []
