"""The report in Chromium: quiet, offline, readable at 1280 and 390 px, by keyboard, in the dark and in print.

Skipped with the reason where there is no browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from made_runs import constant, failed, lattice, run_of

from analysis.compare import compare
from analysis.report import render, write
from analysis.run import Run, load_run
from analysis.study import Options, study

HOSTILE = "</style></td><script>window.__pwned=1</script><img src=x onerror='window.__pwned=2'><b>bold</b>"
SIZES = {"desk": browser.DESK, "phone": browser.PHONE}
FAIR_CONTRAST = 4.5


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as launched:
        yield launched


def hostile() -> Run:
    """Names, errors, warnings and a configuration that would take over a page which let them."""
    records = [*lattice(60, 0.5), *(failed(60 + i, 30.0, error=f"{i} {HOSTILE}") for i in range(3))]
    records += [failed(63 + i, 30.5, error="HTTP 500") for i in range(2)]
    server = {"kind": HOSTILE, "url": HOSTILE, "model": HOSTILE * 3, "gpu": HOSTILE, "dtype": HOSTILE}
    return run_of(
        records,
        constant(300.0, 32.0),
        name=HOSTILE,
        server=server,
        scenario={"name": HOSTILE, "prompts": {"source": HOSTILE}},
        warnings=[HOSTILE, "x" * 400],
    )


@pytest.fixture(scope="module")
def pages(chromium: Any, tmp_path_factory: pytest.TempPathFactory, fixed_run: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run, other = load_run(fixed_run), hostile()
    made = {
        "good": render([study(run, Options(slice_s=20.0))]),
        "several": render([study(run), study(other)], compare([run, other])),
    }
    for name, text in made.items():
        write(text, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["good", "several"])
def test_a_page_is_quiet_asks_nobody_and_fits(
    chromium: Any, pages: dict[str, Path], name: str, size: str
) -> None:
    with browser.opened(chromium, pages[name], SIZES[size]) as (page, seen):
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        assert page.evaluate("[...document.images].length") == 0
        assert page.evaluate("window.__pwned") is None
        assert page.locator("main b", has_text="bold").count() == 0
        if name != "good":
            assert HOSTILE in page.locator("main").inner_text()
        assert seen.messages == []
        assert seen.dialogs == []
        assert seen.asked == [pages[name].as_uri()]


def column(page: Any, caption: str, index: int) -> list[str]:
    """The texts of a column of the table with the caption."""
    cells = table(page, caption).locator(f"tbody tr > :nth-child({index})")
    return [str(text) for text in cells.all_inner_texts()]


def table(page: Any, caption: str) -> Any:
    return page.locator("table", has=page.locator("caption", has_text=caption)).first


def test_a_table_sorts_by_click_and_by_key(chromium: Any, pages: dict[str, Path]) -> None:
    caption = "Stages or slices of the run"
    with browser.opened(chromium, pages["good"], browser.DESK) as (page, _):
        header = table(page, caption).locator("thead th", has_text="From")
        given = column(page, caption, 2)
        starts = [float(text.split()[0]) for text in given]
        assert len(starts) > 3 and starts == sorted(starts)
        assert header.get_attribute("aria-sort") is None
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        assert column(page, caption, 2) == given
        header.locator("button").focus()
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "descending"
        assert column(page, caption, 2) == given[::-1]
        page.keyboard.press("Space")
        assert column(page, caption, 2) == given
        other = table(page, caption).locator("thead th", has_text="Window")
        other.locator("button").click()
        assert header.get_attribute("aria-sort") is None
        assert other.get_attribute("aria-sort") == "ascending"
        assert "sorted by Window, ascending" in page.locator("#said").inner_text()


def test_what_is_missing_sorts_last_both_ways(chromium: Any, pages: dict[str, Path]) -> None:
    caption = "The 4"
    with browser.opened(chromium, pages["good"], browser.DESK) as (page, _):
        header = table(page, caption).locator("thead th", has_text="Figure")
        for _ in range(2):
            header.locator("button").click()
            missing = [text == "\u2013" for text in column(page, caption, 4)]
            assert any(missing) and not all(missing)
            assert missing == sorted(missing)


def test_without_script_the_page_is_whole(chromium: Any, pages: dict[str, Path]) -> None:
    with browser.opened(chromium, pages["good"], browser.DESK) as (page, _):
        with_script = page.locator("main").inner_text()
        buttons = page.locator("main button").count()
    with browser.opened(chromium, pages["good"], browser.DESK, java_script_enabled=False) as (page, _):
        assert page.locator("main").inner_text().split() == with_script.split()
        assert page.locator("main button").count() == 0 < buttons


_CONTRAST = """() => {
  const channel = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest("script,style,svg,.unseen")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className || e.tagName]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_the_light_and_in_the_dark(
    chromium: Any, pages: dict[str, Path], scheme: str
) -> None:
    with browser.opened(chromium, pages["several"], browser.DESK, color_scheme=scheme) as (page, _):
        found = page.evaluate(_CONTRAST)
        assert len(found) > 200
        assert [pair for pair in found if pair[0] < FAIR_CONTRAST] == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = sum(int(n) for n in re.findall(r"\d+", paper)) / 3 > 128
        assert bright is (scheme == "light")
        ink = page.evaluate(
            "getComputedStyle(document.querySelector('svg .f-ink, svg .s-ink') || document.body).color"
        )
        assert (sum(int(n) for n in re.findall(r"\d+", ink)) / 3 > 128) is (scheme == "dark")


def test_print_shows_everything_on_white(chromium: Any, pages: dict[str, Path]) -> None:
    with browser.opened(chromium, pages["several"], browser.DESK, color_scheme="dark") as (page, _):
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        hidden = (
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && !e.checkVisibility())"
        )
        assert page.evaluate(f"{hidden}.length") == 0
        boxes = "[...document.querySelectorAll('pre, .scroll')].map(e => getComputedStyle(e).overflowX)"
        assert set(page.evaluate(boxes)) == {"visible"}
        assert not page.locator("nav").is_visible()


def test_the_keyboard_reaches_the_verdict_first_and_sees_where_it_is(
    chromium: Any, pages: dict[str, Path]
) -> None:
    with browser.opened(chromium, pages["good"], browser.PHONE) as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
        assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        unseen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            look = page.evaluate(
                "(() => { const e = document.activeElement, s = getComputedStyle(e); "
                "return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)] })()"
            )
            if look[0] == "BODY":
                break
            if look[1] == "none" or look[2] < 2:
                unseen.append(look)
        assert unseen == []


def test_only_boxes_that_scroll_are_stops_of_the_tab_key(chromium: Any, pages: dict[str, Path]) -> None:
    stops = (
        "[...document.querySelectorAll('.scroll, pre')].map(e => "
        "[e.hasAttribute('tabindex'), e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight])"
    )
    with browser.opened(chromium, pages["good"], browser.PHONE) as (page, _):
        page.wait_for_function(f"{stops}.every(([stop, scrolls]) => stop === scrolls)")
        assert any(scrolls for _, scrolls in page.evaluate(stops))


def test_the_page_passes_axe(chromium: Any, pages: dict[str, Path]) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing"
    )
    with browser.opened(chromium, pages["several"], browser.PHONE) as (page, _):
        found = axe.Axe().run(page, options={"rules": {"color-contrast": {"enabled": False}}})  # judged above
        assert [
            (v["id"], v["help"], [node["html"][:120] for node in v["nodes"]][:3])
            for v in found.response["violations"]
        ] == []


def test_every_drawing_table_and_region_has_a_name(chromium: Any, pages: dict[str, Path]) -> None:
    with browser.opened(chromium, pages["several"], browser.DESK) as (page, _):
        drawings = page.evaluate(
            "[...document.querySelectorAll('main figure > svg')].map(e => [e.getAttribute('role'), "
            "(e.getAttribute('aria-labelledby') || '').split(' ')"
            ".map(i => document.getElementById(i)?.textContent)])"
        )
        assert len(drawings) >= 5
        assert all(role == "img" and all(words) and len(words) == 2 for role, words in drawings)
        assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.tHead)")
        assert page.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)")
        assert page.locator("main").count() == page.locator("nav").count() == 1
