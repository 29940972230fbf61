from __future__ import annotations

import os
import shutil

import pytest

from mikit.reporting import report

ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<script>document.title='owned'</script>"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(make_flow, tmp_path_factory):
    flow = make_flow(layers=("stem", HOSTILE, "logits"), phases=(0, 4, 30), noises=(0.1, 0.3))
    return report(flow, tmp_path_factory.mktemp("browser") / "report")


@pytest.fixture(params=[1280, 390], ids=["wide", "phone"])
def page(browser, path, request):
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    opened.troubles, opened.asked = [], []
    opened.on("console", lambda message: opened.troubles.append(message.text))
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.goto(path.as_uri())
    yield opened
    assert opened.troubles == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def column(page, name):
    names = page.locator("#table thead button").all_text_contents()
    place = names.index(name) + 1
    return page.locator(f"#table tbody td:nth-child({place})").all_text_contents()


def test_figures_load_and_nothing_scrolls_sideways(page):
    loaded = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 100)")
    assert loaded == [True] * 7
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title().startswith("Information flow")


def test_a_header_sorts_numbers_both_ways(page):
    header = page.get_by_role("button", name="value", exact=True)
    cell = page.locator("#table th", has=header)
    assert cell.get_attribute("aria-sort") == "none"
    header.click()
    rising = [float(value) for value in column(page, "value")]
    assert cell.get_attribute("aria-sort") == "ascending"
    assert rising == sorted(rising)
    header.click()
    falling = [float(value) for value in column(page, "value")]
    assert cell.get_attribute("aria-sort") == "descending"
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[-1]
    page.get_by_role("button", name="phase", exact=True).click()
    assert cell.get_attribute("aria-sort") == "none"
    assert set(column(page, "phase")) == {"0"}


def test_empty_cells_sort_last_both_ways(page):
    header = page.get_by_role("button", name="noise", exact=True)
    for _ in range(2):
        header.click()
        assert "" not in column(page, "noise")


def test_filters_and_pages(page):
    total = page.locator("#shown").text_content()
    assert total.startswith("Rows 1 to 100 of ")
    assert len(column(page, "value")) == 100
    page.get_by_role("button", name="Next").click()
    assert page.locator("#shown").text_content().startswith("Rows 101 to 200")
    page.get_by_label("quantity").select_option("accuracy")
    assert set(column(page, "quantity")) == {"accuracy"}
    page.get_by_label("Search").fill("vid 30")
    assert all("VID" in name for name in column(page, "network"))
    assert 0 < len(column(page, "value")) < 15
    page.get_by_label("Search").fill("no such thing")
    assert "None of the" in page.locator("#shown").text_content()
    page.get_by_label("Search").fill("")
    page.get_by_label("quantity").select_option("")
    page.get_by_role("button", name="Show all").click()
    assert len(column(page, "value")) > 400


def test_hostile_names_do_nothing(page):
    page.get_by_role("button", name="Show all").click()
    assert HOSTILE in column(page, "layer")
    assert page.title() != "owned"
    assert page.locator("script").count() == 2
