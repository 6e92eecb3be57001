"""Figures stay inside their frame, look alike whatever the user set, and are harmless text in any page."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
import pytest
from made_figures import attributed, comparison, every
from matplotlib.text import Text

from analysis import figures
from analysis.figures import axes, style, words
from analysis.figures.style import Drawn
from loadgen.errors import ConfigError

HOSTILE = "</text><script>alert(1)</script><b onload='x'>$\\frac{1}{0}$ \x00\u202e & 'n'"


@pytest.fixture(scope="module")
def drawn_once(mixed_run: Path) -> dict[str, Drawn]:
    return every(mixed_run)


def test_svg_is_scoped_text_that_runs_and_loads_nothing(drawn_once: dict[str, Drawn]) -> None:
    ids: list[str] = []
    for name, drawn in drawn_once.items():
        text = figures.svg(drawn)
        root = ET.fromstring(text)
        here = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        ids += here
        assert all(i.startswith(name) for i in here)
        tags = {e.tag.rpartition("}")[2] for e in root.iter()}
        assert tags <= {"svg", "title", "desc", "style", "g", "defs", "path", "use", "text", "rect"} | {
            "clipPath",
            "pattern",
        }
        references = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
        assert set(references) <= set(here)
        assert text.count("href=") == text.count('href="#') and "http" not in text.replace(
            "http://www.w3.org", ""
        )
        assert not any(key.startswith("on") or key == "style" for e in root.iter() for key in e.attrib)
        assert root.attrib["role"] == "img" and "width" not in root.attrib
        assert [root[0].text, root[1].text] == [drawn.title, drawn.alt]
        assert drawn.alt.endswith(".") and drawn.alt.count(". ") == 0 and re.search(r"\d", drawn.alt)
        assert "var(--fg,currentColor)" in text and len(text) < 200_000
        spelled = {e.text for e in root.iter() if e.tag.endswith("}text")}
        assert set(words.wrapped(drawn.title, 45)) <= spelled
    assert len(ids) == len(set(ids))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    def draw() -> Drawn:
        drawn = figures.energy_histogram(attributed(np.linspace(1.0, 50.0, 80)))
        assert drawn is not None
        return drawn

    first, second = draw(), draw()
    assert figures.svg(first) == figures.svg(first) == figures.svg(second)
    for ending in figures.FORMATS:
        a, b = (figures.save(d, tmp_path / f"{k}{ending}") for k, d in enumerate((first, second)))
        assert a.read_bytes() == b.read_bytes()
    assert (tmp_path / "0.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match=r"\.svg, \.png, \.pdf"):
        figures.save(first, tmp_path / "figure.gif")


def test_a_hostile_name_stays_text() -> None:
    for drawn in (
        figures.shaping_bars(comparison(True, HOSTILE), name=HOSTILE),
        figures.forest(comparison(True, HOSTILE), name="x"),
        figures.shaping_bars(comparison(True, "名前 \U0001f600 \ud800"), name="y"),
    ):
        assert drawn is not None
        root = ET.fromstring(figures.svg(drawn))
        assert not {"script", "b"} & {e.tag.rpartition("}")[2] for e in root.iter()}
        assert re.fullmatch(r"[a-z0-9-]+", drawn.name)
        shown = "".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
        assert not set(shown) & {"\x00", "\u202e", "\ud800"}


def test_nothing_is_cut_off_or_small_or_on_top_of_other_text(drawn_once: dict[str, Drawn]) -> None:
    for name, drawn in drawn_once.items():
        figure = drawn.figure
        with style.house():
            figure.draw_without_rendering()
            renderer = figure._get_renderer()  # type: ignore[attr-defined]
            shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
            boxes = {t: t.get_window_extent(renderer) for t in shown}
        frame = figure.bbox
        off = {text for ax in figure.axes for text in off_axis(ax)}
        inside = {
            t: b for t, b in boxes.items() if not (b.x1 < 0 or b.y1 < 0 or b.x0 > frame.x1) and t not in off
        }
        for text, box in inside.items():
            where = f"{name}: {text.get_text()!r}"
            assert box.x0 >= -1 and box.x1 <= frame.x1 + 1 and box.y0 >= -1 and box.y1 <= frame.y1 + 1, where
            assert text.get_fontsize() * 390 / (72 * style.WIDTH_IN) >= 12.0, where
        for (a, box_a), (b, box_b) in itertools.combinations(inside.items(), 2):
            over_x = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
            over_y = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
            assert over_x <= 2 or over_y <= 3, f"{name}: {a.get_text()!r} on {b.get_text()!r}"


def off_axis(ax: Any) -> set[Text]:
    """Tick labels outside the limits: matplotlib keeps them and does not draw them."""
    found = set()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in axis.get_major_ticks():
            if not low - slack <= tick.get_loc() <= high + slack or not tick.label1.get_visible():
                found |= {tick.label1, tick.label2}
    return found


def test_colours_are_seen_on_white_and_on_dark_pages() -> None:
    def luminance(color: str) -> float:
        """Relative luminance, WCAG 2.2."""
        c = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color in style.SERIES:
        for page in ("#ffffff", "#121417"):
            dark, light = sorted((luminance(color), luminance(page)))
            assert (light + 0.05) / (dark + 0.05) >= 3.0, (color, page)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1,500"),
        (1e6, "1,000,000"),
        (-3, "\u22123"),
        (1e-5, "0.00001"),
        (1e12, "1e+12"),
    ],
)
def test_ticks_are_plain_numbers(value: float, label: str) -> None:
    assert axes.tick(value) == label


@pytest.mark.parametrize(
    ("low", "high"), [(0.97, 1.02), (1.0, 9.0), (0.3, 4000.0), (1e-6, 1e6), (95.0, 96.0)]
)
def test_a_log_axis_has_a_few_ticks_whatever_its_span(low: float, high: float) -> None:
    at = axes.log_ticks(low, high)
    assert 2 <= len(at) <= 7 and all(low <= x <= high * 1.001 for x in at)


def test_the_users_settings_are_neither_used_nor_changed(drawn_once: dict[str, Drawn]) -> None:
    before = dict(matplotlib.rcParams)
    plain = figures.svg(drawn_once["forest"])
    with matplotlib.rc_context({"font.size": 3, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert figures.svg(drawn_once["forest"]) == plain
    assert dict(matplotlib.rcParams) == before


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, analysis.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
