from __future__ import annotations

import csv

import pytest

from mikit.reporting import report

MAPS_DRAWN = "document.querySelector('#figure-maps .chart').data?.filter(trace => trace.type === 'heatmap').length"
HOSTILE = "<script>document.title='owned'</script>"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(make_flow, tmp_path_factory):
    flow = make_flow(layers=("stem", HOSTILE, "logits"), phases=(0, 4, 30), noises=(0.1, 0.3))
    return report(flow, tmp_path_factory.mktemp("browser") / "report")


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide-light", "phone-dark"])
def page(browser, path, request):
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.troubles, opened.asked = [], []
    opened.on("console", lambda message: opened.troubles.append(message.text))
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    # A loaded machine gives a browser little time; how long a page takes is measured in
    # benchmarks/costs/report_size.py.
    opened.set_default_timeout(180_000)
    opened.goto(path.as_uri())
    opened.wait_for_selector("html[data-ready]", state="attached")
    yield opened
    assert opened.troubles == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def column(page, name):
    names = page.locator("#table thead button").all_text_contents()
    place = names.index(name) + 1
    return page.locator(f"#table tbody td:nth-child({place})").all_text_contents()


def until(page, expression):
    """Wait until an expression holds; Playwright's own waiting evaluates strings, which the page's policy forbids."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def draw_all(page):
    """Draw the figures that are not in view yet, as printing does."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def move(page, place):
    page.evaluate(
        "p => { const s = document.getElementById('phase'); s.value = p; s.dispatchEvent(new Event('input')) }", place
    )


def heat(page, name="maps"):
    maps = "filter(trace => trace.type === 'heatmap').map(trace => trace.z)"
    return page.evaluate(f"document.querySelector('#figure-{name} .chart').data.{maps}")


def test_figures_are_drawn_and_nothing_scrolls_sideways(page):
    draw_all(page)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart')].map(c => c.data.length && c.querySelector('svg') !== null)"
    )
    assert drawn == [True] * 11
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title().startswith("Information flow")


def test_the_slider_moves_maps_curves_and_verdicts(page):
    draw_all(page)
    last, strip = heat(page), page.locator("#figure-maps .strip").text_content()
    assert "Phase 30" in strip
    curve = "document.querySelector('#figure-flow .chart').data.map(t => t.y)"
    lines = page.evaluate(curve)
    page.locator("#phase").focus()
    page.keyboard.press("ArrowLeft")
    draw_all(page)
    assert page.locator("#phase").get_attribute("aria-valuetext") == "phase 4, 2 of 3"
    page.locator("#figure-maps").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-maps[data-phase='4']")
    assert heat(page) != last
    page.locator("#figure-flow").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-flow[data-phase='4']")
    assert page.evaluate(curve) != lines
    assert "Phase 4" in page.locator("#figure-flow .strip").text_content()


def test_maps_hold_the_means_of_the_seeds_and_their_difference(page, make_flow):
    move(page, 1)
    draw_all(page)
    flow = make_flow(layers=("stem", HOSTILE, "logits"), phases=(0, 4, 30), noises=(0.1, 0.3))
    rows = flow.frame[
        flow.frame["quantity"].eq("recovered_share") & flow.frame["noise"].eq(0.3) & flow.frame["phase"].eq(4)
    ]
    means = rows.groupby(["network", "layer_index", "teacher_layer_index"])["value"].mean()
    own = [[means["student + VID", i, j] for j in range(3)] for i in range(3)]
    base = [[means["student alone", i, j] for j in range(3)] for i in range(3)]
    assert heat(page)[1] == [pytest.approx(row, rel=1e-3) for row in own]
    page.get_by_label("Maps show").select_option("difference from student alone")
    draw_all(page)
    page.locator("#figure-maps").scroll_into_view_if_needed()
    until(page, MAPS_DRAWN + " === 1")
    (found,) = heat(page)
    gains = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, base, strict=True)]
    assert found == [pytest.approx(row, abs=2e-4) for row in gains]


def test_the_arrow_keys_read_value_interval_and_verdict(page):
    page.locator("#figure-maps .chart").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-maps[data-phase]")
    page.locator("#figure-maps .chart").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#figure-maps .reading").text_content()
    page.keyboard.press("ArrowUp")
    second = page.locator("#figure-maps .reading").text_content()
    assert "layer stem, teacher layer stem, phase 30" in first
    assert f"layer {HOSTILE}, teacher layer stem" in second
    until(page, "document.querySelectorAll('#figure-maps .hoverlayer text').length > 0")
    for part in ("3 seeds: ", "95 % sampling interval", "untrained", "trustworthy"):
        assert part in first


def test_the_pointer_shows_value_interval_and_verdict(page):
    page.locator("#figure-maps .chart").scroll_into_view_if_needed()
    page.wait_for_selector("#figure-maps[data-phase]")
    page.locator("#figure-maps .nsewdrag").first.hover(position={"x": 20, "y": 60}, force=True)
    until(page, "document.querySelectorAll('#figure-maps .hoverlayer text').length > 0")
    words = page.locator("#figure-maps .hoverlayer").text_content()
    for part in ("student ", "3 seeds: ", "95 % sampling interval", "trustworthy"):
        assert part in words


def test_a_network_can_be_left_out(page):
    page.get_by_label("student alone", exact=True).uncheck()
    page.locator("#figure-maps").scroll_into_view_if_needed()
    until(page, MAPS_DRAWN + " === 1")


def test_dark_and_light(page):
    drawn = "document.querySelector('#figure-phases .chart').layout?.paper_bgcolor"
    paper = f"getComputedStyle(document.body).backgroundColor + {drawn}"
    draw_all(page)
    before = page.evaluate(paper)
    page.get_by_role("button", name="Change between dark and light").click()
    page.locator("#figure-phases").scroll_into_view_if_needed()
    dark, light = ("#15181c", "rgb(21, 24, 28)"), ("#fff", "rgb(255, 255, 255)")
    now, body = light if dark[0] in before else dark
    until(page, f"({paper}).endsWith('{now}')")
    assert body in page.evaluate(paper)


def test_the_kept_rows_come_down_as_csv(page, tmp_path):
    page.locator("#controls").get_by_label("quantity").select_option("label_gap")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download CSV").click()
    coming.value.save_as(tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3 * 3
    assert {row["quantity"] for row in rows} == {"label_gap"}
    assert HOSTILE in {row["layer"] for row in rows}


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
    page.locator("#controls").get_by_label("quantity").select_option("accuracy")
    assert set(column(page, "quantity")) == {"accuracy"}
    page.get_by_label("Search").fill("vid 30")
    assert all("VID" in name for name in column(page, "network"))
    assert 0 < len(column(page, "value")) < 15
    page.get_by_label("Search").fill("no such thing")
    assert "None of the" in page.locator("#shown").text_content()
    page.get_by_label("Search").fill("")
    page.locator("#controls").get_by_label("quantity").select_option("")
    page.get_by_role("button", name="Show all").click()
    assert len(column(page, "value")) > 400


def test_hostile_names_do_nothing(page):
    page.get_by_role("button", name="Show all").click()
    assert HOSTILE in column(page, "layer")
    assert page.title() != "owned"
    assert page.locator("script").count() == 3
    draw_all(page)
    shown = page.evaluate("[...document.querySelectorAll('#figure-maps .ytick text')].map(t => t.textContent)")
    assert any("cript" in name for name in shown)
    assert page.locator(".chart script").count() == 0
