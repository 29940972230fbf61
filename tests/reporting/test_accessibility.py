"""Whether the page can be read and worked by everyone: names, focus, contrast, at both widths and in both schemes."""

from __future__ import annotations

import pytest

from mikit.reporting import report

HOSTILE = "<script>document.title='owned'</script>"
STOPS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
LEAST = 4.5

pytestmark = pytest.mark.browser

UNNAMED = """[...document.querySelectorAll('button, input, select, textarea, a[href], summary, [tabindex="0"]')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() && !['SELECT', 'INPUT'].includes(e.tagName)
    || [...(e.labels ?? [])].some(label => label.textContent.replace(e.textContent, '').trim())))
  .map(e => e.outerHTML.slice(0, 120))"""

FAINT = """least => {
  const read = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const linear = c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    for (let at = e; at; at = at.parentElement) {
      const own = read(getComputedStyle(at).backgroundColor);
      if (own.length < 4 || own[3] > .99) return own;
    }
    return read(getComputedStyle(document.body).backgroundColor);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(e.tagName)) continue;
    if (!e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (e.closest('.textpoint, .hoverlayer, .modebar') || e.closest('button:disabled')) continue;
    const ink = read(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < least) found.push([node.data.trim().slice(0, 40), ink, (a + .05) / (b + .05)]);
  }
  return found;
}"""


WIDE = """[...document.querySelectorAll('main *')]
  .filter(e => !e.closest('.scroll, .chart, #networks') && e.checkVisibility())
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def path(make_flow, tmp_path_factory):
    layers = ("stem", HOSTILE, "ein.sehr.langer.name.einer.schicht.die.niemand.lesen.will", "層「三」\"'&", "logits")
    return report(make_flow(layers=layers, phases=(0, 4, 9, 30)), tmp_path_factory.mktemp("access") / "report")


@pytest.fixture(
    scope="module",
    params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")],
    ids=["wide-light", "wide-dark", "phone-light", "phone-dark"],
)
def page(browser, path, request):
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.set_default_timeout(60_000)
    opened.asked, opened.troubles = [], []
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.on("console", lambda message: opened.troubles.append(message.text))
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.goto(path.as_uri())
    opened.wait_for_selector("html[data-ready]", state="attached")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    yield opened
    assert opened.troubles == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def until(page, expression):
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def test_every_control_has_a_name(page):
    assert page.evaluate(UNNAMED) == []


def test_every_word_stands_out_from_its_ground(page):
    assert page.evaluate(FAINT, LEAST) == []


def test_numbers_in_maps_stand_out_from_their_cells(page):
    """The cell's colour is made here anew from the map's scale."""
    for name in ("maps", "cka", "match"):
        maps, words = page.evaluate(
            f"""(() => {{ const data = document.querySelector('#figure-{name} .chart').data, layout =
              document.querySelector('#figure-{name} .chart').layout;
              return [data.filter(t => t.type === 'heatmap').map(t => [t.z, layout.coloraxis?.cmax ?? t.zmax]),
              data.filter(t => t.mode === 'text').map(t => [t.x, t.y, t.textfont.color])]; }})()"""
        )
        assert maps
        if page.viewport_size["width"] > 1000:
            assert len(words) == len(maps)
        for (values, most), (xs, ys, colors) in zip(maps, words, strict=False):
            for x, y, color in zip(xs, ys, colors, strict=True):
                assert contrast(color, shade(values[y][x] / most)) >= LEAST


def shade(share):
    place = min(max(share, 0), 1) * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    ends = [[int(STOPS[low + k][i : i + 2], 16) for i in (0, 2, 4)] for k in (0, 1)]
    return [a + (b - a) * (place - low) for a, b in zip(*ends, strict=True)]


def contrast(color, ground):
    def light(rgb):
        parts = [v / 255 for v in rgb]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    high, low = sorted((light(ink), light(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate(WIDE)
    assert wide == []


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page):
    page.evaluate("document.body.focus(); scrollTo(0, 0)")
    wanted = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a[href], summary, [tabindex="0"]')]
          .filter(e => e.checkVisibility() && !e.disabled && !e.closest('svg, .modebar')).length"""
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """(() => { const e = document.activeElement, s = getComputedStyle(e);
              window.seen ??= []; if (!window.seen.includes(e)) window.seen.push(e);
              const ring = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1;
              return [window.seen.indexOf(e), e === document.body || ring, e.outerHTML.slice(0, 100)]; })()"""
        )
        assert found[1], found[2]
        reached.add(found[0])
    assert len(reached) >= wanted


def test_readings_are_read_by_key_and_have_a_table(page):
    for name, words in (
        ("changes", "two standard errors"),
        ("divergence", "term of the last layer"),
        ("paths", "threshold"),
        ("match", "linear CKA"),
    ):
        box = page.locator(f"#figure-{name} .chart")
        box.scroll_into_view_if_needed()
        box.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert words in page.locator(f"#figure-{name} .reading").text_content()
        assert page.locator(f"#figure-{name} .summary tbody tr").count() >= 1
        assert page.locator(f"#figure-{name} .caveat").text_content().startswith("Note:")


def test_a_reading_follows_its_choices(page):
    figure = page.locator("#figure-changes")
    figure.scroll_into_view_if_needed()
    traces = "document.querySelector('#figure-changes .chart').data.map(trace => trace.y)"
    before = page.evaluate(traces)
    figure.get_by_role("combobox", name="Seed").select_option("1")
    until(page, "document.querySelector('#figure-changes .facts').textContent.includes('seed 1')")
    assert page.evaluate(traces) != before
    figure.get_by_role("combobox", name="Student").select_option(label="student + VID")
    assert "student + VID, seed 1" in figure.locator(".facts").text_content()
    assert "Change points of student + VID" in figure.locator(".caption").text_content()

    paths = page.locator("#figure-paths")
    last = "document.querySelector('#figure-paths .chart').data[1].y.at(-1)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    forward = page.evaluate(last)
    paths.get_by_role("combobox", name="Student").select_option(label="student alone")
    assert "Choose two different students" in paths.locator(".chart").text_content()
    paths.get_by_role("combobox", name="minus").select_option(label="student + VID")
    until(page, f"{last} !== undefined")
    assert page.evaluate(last) == pytest.approx(-forward)
    assert HOSTILE in paths.locator(".summary").text_content()
    assert page.title() != "owned"
