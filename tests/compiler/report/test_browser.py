"""The page in a real browser: no errors, every plot drawn, readable on a phone and on a desk, in light and in dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.compiler.report.chromium import Browser, chromium
from tests.compiler.report.results import made_up

from coda_compile.report.page import make_report
from coda_targets import Bundle

pytestmark = pytest.mark.browser
WIDTHS = (390, 1440)
# What reaches beyond the page, but for what scrolls in a box of its own.
OUTSIDE = """
[...document.body.querySelectorAll('*')].filter(e =>
    !e.closest('.scroller') && !e.closest('.skip') && e.getBoundingClientRect().right > innerWidth + 1
).map(e => e.tagName + '.' + e.className)
"""
CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const paper = light(rgb(getComputedStyle(document.body).backgroundColor));
  const ratio = text => { const l = light(rgb(text)); return (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05); };
  const chosen = ['h1', 'p.lead', 'figcaption', 'summary', '.why', 'nav a', 'td', '.chart .xtick text', '.chart .annotation text'];
  return chosen.map(s => [s, document.querySelector(s)]).map(([s, e]) => [s, ratio(
    e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color)]);
})()
"""


@pytest.fixture(scope="module")
def page(compiled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    bench = folder / "bench.json"
    bench.write_text(made_up().dump())
    data = folder / "data.csv"
    data.write_text("text,label\ngood film,0\nbad plot,1\n")
    text = "good film , bad plot . " * 30 + "supercalifragilisticexpialidocious " * 3
    return make_report(compiled, folder / "page.html", bench=bench, text=text, data=data, threads=1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_drawn_whole_and_without_errors(width: int, dark: bool, browser: Browser, page: Path):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate("innerWidth") == width
    charts = browser.evaluate("document.querySelectorAll('.chart').length")
    assert charts == 9
    assert int(browser.evaluate("document.documentElement.dataset.plotsDrawn")) == charts
    marks = "c.querySelector('.cartesianlayer :is(.point, .bars path, .heatmaplayer image)')"
    assert browser.evaluate(f"[...document.querySelectorAll('.chart')].filter(c => !{marks}).map(c => c.id)") == []
    assert browser.errors == []
    assert [address for address in browser.requests if not address.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_on_its_ground(dark: bool, browser: Browser, page: Path):
    browser.open(page, width=390, dark=dark)
    poor = {what: ratio for what, ratio in browser.evaluate(CONTRAST) if ratio < 4.5}
    assert poor == {}


def test_text_on_a_phone_is_no_smaller_than_eleven_pixels(browser: Browser, page: Path):
    browser.open(page, width=390)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, dt, summary, svg text')].filter(e => e.textContent.trim())"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11


def test_figures_follow_the_theme_while_the_page_is_open(browser: Browser, page: Path):
    colour = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    browser.open(page, width=1440)
    light = browser.evaluate(colour)
    browser.theme(dark=True)
    browser.wait(f"{colour} != '{light}'")
    browser.theme(dark=False)
    browser.wait(f"{colour} == '{light}'")
    assert browser.errors == []


def test_every_figure_is_a_table_that_the_keyboard_opens(browser: Browser, page: Path):
    browser.open(page, width=390)
    browser.evaluate("document.querySelector('figure summary').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate("document.querySelector('figure details').open")
    assert browser.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('details table'))")
    assert browser.evaluate("[...document.querySelectorAll('details')].every(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_boxes_that_scroll_can_be_reached_without_a_mouse(browser: Browser, page: Path):
    browser.open(page, width=390)
    unreachable = (
        "[...document.querySelectorAll('.scroller')].filter(s => s.scrollWidth > s.clientWidth && s.tabIndex < 0)"
    )
    assert browser.evaluate(f"{unreachable}.length") == 0
    assert browser.evaluate("document.querySelector('#routing').parentElement.scrollWidth > innerWidth")


def test_printing_opens_every_table_in_light_colours(browser: Browser, page: Path):
    browser.open(page, width=1440, dark=True)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not browser.evaluate("document.querySelector('details').open")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_a_page_that_breaks_is_noticed(browser: Browser, page: Path, tmp_path: Path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.read_text("utf-8").replace("</body>", "<script>console.error('seen')</script></body>"), "utf-8"
    )
    browser.errors.clear()
    browser.open(broken, width=390)
    assert len(browser.errors) == 1
    browser.errors.clear()
