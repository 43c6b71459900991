"""The report in a browser: it opens without a complaint or a request, its tables and charts do as they are asked."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich.table
from rich.text import Text

from moesim.pages import About, result_page
from sim import plots
from sim.outputs import write_outputs
from tests.browser import CHROMIUM, Page, opened
from tests.fake_results import fake_comparison

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")]

EVIL = "<img src=x onerror=document.title='evil'>"
DRAWN = """(async () => {
  dispatchEvent(new Event("beforeprint"));
  await new Promise((done) => setTimeout(done, 500));
  return Object.fromEntries([...document.querySelectorAll("figure[data-chart]")].map((figure) => {
    const canvas = figure.querySelector("canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [figure.dataset.chart, new Set(new Uint32Array(pixels.buffer)).size];
  }));
})()"""
"""How many colours each chart shows once all are drawn."""
PLANS = """[...document.querySelector(".ranking").tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => row.cells[1].firstChild.textContent.trim())"""


@pytest.fixture(name="browser", scope="module")
def one_browser() -> Iterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, opened(Path(profile)) as page:
        yield page


@pytest.fixture(name="report", scope="module")
def one_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    names = (EVIL, "contiguous", *(f"plan {rank}" for rank in range(2, 12)))
    write_outputs(fake_comparison(names=names, n_devices=8, n_layers=6), folder)
    return folder / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_a_report_opens_in_peace(browser: Page, report: Path, width: int, dark: bool) -> None:
    browser.problems.clear()
    browser.requested.clear()
    browser.open(report, width, dark=dark)
    colours = browser.run(DRAWN)
    assert set(colours) == {"step-time", "timeline", "device-load", "traffic", "links"}
    assert min(colours.values()) > 8
    assert browser.problems == []
    assert [url for url in browser.requested if not url.startswith("data:")] == [report.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.title") == "fake scenario · moesim"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(18, 22, 28)" if dark else "rgb(246, 247, 249)"
    )


def test_tables_are_filtered_and_sorted_and_the_theme_is_changed(browser: Page, report: Path) -> None:
    browser.open(report)
    assert browser.run(PLANS)[:3] == [EVIL, "contiguous", "plan 2"]
    browser.run("""(() => {
      const box = document.querySelector("input[type=search]");
      box.value = "plan 1";
      box.dispatchEvent(new Event("input"));
    })()""")
    assert browser.run(PLANS) == ["plan 10", "plan 11"]
    assert browser.run('document.querySelector("output").textContent') == "2 of 12"
    click = 'document.querySelector(".ranking th .sort").click()'
    browser.run(f"{click}; {click}")
    assert browser.run(PLANS) == ["plan 11", "plan 10"]
    assert browser.run('document.querySelector(".ranking th").getAttribute("aria-sort")') == "descending"
    browser.run('theme.value = "dark"; theme.dispatchEvent(new Event("change"))')
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    browser.run('theme.value = ""; theme.dispatchEvent(new Event("change"))')


def test_the_timeline_zooms_by_keys_and_says_what_a_bar_is(browser: Page, report: Path) -> None:
    browser.open(report)
    browser.run(DRAWN)
    span = """(() => {
      const { startValue, endValue } = echarts.getInstanceByDom(document.querySelector("[data-chart=timeline] .chart"))
        .getOption().dataZoom[0];
      return endValue - startValue;
    })()"""
    place = "document.querySelector('[data-chart=timeline] .chart')"
    press = place + ".dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    browser.run(press % "Home")
    whole = browser.run(span)
    assert whole == pytest.approx(1.1e6 * 1.1, rel=0.2)  # nanoseconds of the slower of two steps
    browser.run(press % "+")
    assert browser.run(span) == pytest.approx(whole / 2)
    browser.run(press % "Home")
    told = browser.run("""(async () => {
      const place = document.querySelector("[data-chart=timeline] .chart");
      echarts.getInstanceByDom(place).dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: 0 });
      await new Promise((done) => setTimeout(done, 300));
      return place.querySelector(".tip").textContent;
    })()""")
    assert told.startswith("attention, layer 1\ndevice 0, compute\nstart 0, end ")


def test_a_page_of_tables_opens_in_peace(browser: Page, tmp_path: Path) -> None:
    about = About(title=EVIL, question="Why?", version="0", file="numbers.json")
    table = rich.table.Table("name", rich.table.Column("value", justify="right"), title=Text(EVIL))
    for number in range(9):
        table.add_row(Text(EVIL), str(number))
    figure = plots.step_time_figure(fake_comparison().tables[0])
    page = result_page(about, [table, Text(EVIL)], {"rows": [{"a": 1.5}, {"b": EVIL}]}, {"one": figure})
    (tmp_path / "report.html").write_text(page)
    browser.problems.clear()
    browser.open(tmp_path / "report.html", 400, dark=True)
    assert browser.problems == []
    assert browser.run("document.title") == f"{EVIL} · moesim"
    assert browser.run("document.querySelectorAll('table').length") == 2
    assert browser.run("document.documentElement.scrollWidth") <= 400
