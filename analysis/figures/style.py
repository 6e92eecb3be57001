"""How every figure looks: size, colours, text, axes, and what a finished one is.

A figure is 6.4 in wide with text of 14.4 pt, so that at 390 px its text is still 12 px, 9 pt, high.
The colours are those of Okabe and Ito (2008, "Color universal design"), two of them darkened: each
has a contrast of 3 or more to a white and to a near-black page, and none is the only mark of a
series: line style, marker, hatch or place tells it as well.

matplotlib is imported when a figure is drawn. Its settings are those of `house` while one is
drawn or saved, whatever the user's own are, and back to what they were afterwards.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from analysis.figures.axes import number_axis
from analysis.figures.words import plain, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH_IN = 6.4
TEXT_PT = 14.4
TITLE_PT = 15.6
INK, MUTED, FAINT = "#1a1a1a", "#5a5a5a", "#d2d2d2"
BLUE, VERMILLION, GREEN, PURPLE, AMBER = "#0072b2", "#d55e00", "#009e73", "#c0669a", "#b98500"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, AMBER)
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.6)), (0, (8, 2, 2, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
HATCHES = ("", "///", "++", "xx", "\\\\\\")
_LINE_IN = 1.3 * TEXT_PT / 72
_TITLE_LINE_IN = 1.3 * TITLE_PT / 72
_TITLE_CHARS = 45
_MARGIN_IN = 0.06
_KEY_PT = (1.9 + 0.5 + 1.2) * TEXT_PT
_RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT_PT,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": TEXT_PT,
    "axes.labelsize": TEXT_PT,
    "axes.xmargin": 0.02,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.7,
    "legend.fontsize": TEXT_PT,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": TEXT_PT,
    "ytick.labelsize": TEXT_PT,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished figure. ``name``: of letters, digits and dashes, one of its kind on a page.

    ``title``: what it shows. ``alt``: one sentence with its main numbers, for those who do not see it.
    """

    figure: Figure
    name: str
    title: str
    alt: str


@contextmanager
def house(**more: Any) -> Iterator[None]:
    """matplotlib's settings for these figures, for as long as the context lasts.

    A glyph that the font lacks is no warning: in an SVG the reader's own fonts have it.
    """
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", {**_RC, **more}]):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def in_house_style(draw: Callable[P, Drawn | None]) -> Callable[P, Drawn | None]:
    """Makes a figure function draw under `house`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn | None:
        with house():
            return draw(*args, **kwargs)

    return drawn


class Sheet:
    """A figure in the making: a title, a line on what and how many it is of, a legend, axes, a note.

    ``axes``: below each other, of ``heights_in``; whatever else there is makes the figure higher.
    """

    def __init__(
        self, title: str, said: str, heights_in: Sequence[float], *, note: str = "", share_x: bool = False
    ) -> None:
        from matplotlib.figure import Figure

        self.title, self.said, self.note = plain(title), plain(said), plain(note)
        self.body_in = math.fsum(heights_in)
        self.keys: list[Any] = []
        self.figure: Figure = Figure(figsize=(WIDTH_IN, self.body_in), facecolor="none")
        ratios = {"height_ratios": list(heights_in)}
        grid = self.figure.subplots(len(heights_in), 1, squeeze=False, sharex=share_x, gridspec_kw=ratios)
        self.axes: list[Axes] = list(grid[:, 0])
        for ax in self.axes:
            ax.grid(axis="y")
            ax.tick_params(length=4)
            number_axis(ax.xaxis)
            number_axis(ax.yaxis)

    def finish(self, name: str, alt: str) -> Drawn:
        """Lays everything out, once, so that saving it again gives the same bytes."""
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        head, sub = wrapped(self.title, _TITLE_CHARS), wrapped(self.said)
        foot = wrapped(self.note)
        columns = _columns([str(h.get_label()) for h in self.keys])
        rows = math.ceil(len(self.keys) / columns)
        title_in = _MARGIN_IN + len(head) * _TITLE_LINE_IN
        above_in = title_in + len(sub) * _LINE_IN + (rows * _LINE_IN + 3 * _MARGIN_IN if rows else 0)
        below_in = len(foot) * _LINE_IN + _MARGIN_IN
        height_in = above_in + self.body_in + below_in
        figure, left = self.figure, _MARGIN_IN / WIDTH_IN
        figure.set_size_inches(WIDTH_IN, height_in)

        def write(lines: Sequence[str], from_top_in: float, **look: Any) -> None:
            where = (left, 1 - from_top_in / height_in)
            figure.text(*where, "\n".join(lines), ha="left", linespacing=1.3, in_layout=False, **look)

        write(head, _MARGIN_IN, va="top", size=TITLE_PT, weight="bold")
        write(sub, title_in, va="top", color=MUTED)
        write(foot, height_in - _MARGIN_IN, va="bottom", color=MUTED, style="italic")
        if rows:
            at = (left, 1 - (title_in + len(sub) * _LINE_IN + _MARGIN_IN) / height_in)
            figure.legend(
                handles=self.keys, loc="upper left", bbox_to_anchor=at, ncols=columns, borderaxespad=0
            ).set_in_layout(False)
        for ax in self.axes:
            ax.yaxis.label.set(rotation_mode="anchor", ha="center", va="bottom")
        inner = (0, below_in / height_in, 1, self.body_in / height_in)
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.05, hspace=0.04, rect=inner))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
        return Drawn(figure, slug or "figure", self.title, plain(alt))


def _columns(labels: Sequence[str]) -> int:
    """The most columns, at most 4, in which these labels of a legend fit beside each other."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", size=TEXT_PT)
    width_pt = [float(TextPath((0, 0), label, prop=font).get_extents().width) for label in labels]
    for columns in range(min(4, len(labels)), 1, -1):
        widest = [float(column.max()) for column in np.array_split(np.array(width_pt), columns)]
        if sum(widest) + columns * _KEY_PT <= 72 * (WIDTH_IN - 2 * _MARGIN_IN):
            return columns
    return 1


def key(color: str, label: str, **line: Any) -> Any:
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **line)
