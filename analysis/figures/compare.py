"""Figures of comparisons: what each side cost, and how far the others are from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.axes import limits, log_axis, number_axis
from analysis.figures.style import BLUE, FAINT, INK, MUTED, Drawn, Sheet, in_house_style, key
from analysis.figures.words import count, named, prefixed, span, why_no_interval
from loadgen.types import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.compare.comparison import Comparison, Headline

ENERGY = "energy_per_request_j"
OVERVIEW = (
    ENERGY,
    "idle_share_j",
    "active_share_j",
    "energy_per_output_token_j",
    "mean_power_w",
    "cpu_energy_per_request_j",
    "ram_energy_per_request_j",
    "mean_ttft",
    "p99_ttft",
    "p50_tpot",
    "p50_e2e",
    "p99_e2e",
    "p99_e2e_from_demand",
    "achieved_rps",
    "output_tokens_per_s",
    "success_ratio",
    "goodput_ratio",
)
"""Headlines of a forest plot of all: not those that follow from these, as totals do."""
MOST_ROWS = 24
EQUAL, UNEQUAL, UNTOLD = "equal load", "NOT at equal load", "equal load not certain"
_ROW_IN, _BAR_IN, _FRAME_IN = 0.36, 0.62, 0.75
_NAME, _SIDE, _LABEL = 22, 26, 28
_LEAST_RATIO_SPAN = 1.05


@in_house_style
def shaping_bars(comparison: Comparison, metric: str = ENERGY, *, name: str = "shaping-bars") -> Drawn | None:
    """One headline of every side: a bar from 0 with its 95 % interval.

    Blue: at the same load as the reference; grey and hatched: not, so that the arrivals are not all that
    differs; grey: it cannot be told. None when fewer than two sides have a value.
    """
    headline = comparison.headline(metric)
    if headline is None:
        return None
    verdicts: list[bool | None] = [True, *(a.load.verdict.equal for a in comparison.against)]
    rows = [
        (side.name, value, verdict)
        for side, value, verdict in zip(comparison.sides, headline.values, verdicts, strict=True)
        if value.value is not None
    ][:MOST_ROWS]
    if len(rows) < 2:
        return None
    greatest = max(x for _, e, _ in rows for x in (e.value, e.high) if x is not None)
    scale, unit = prefixed(greatest, headline.unit) if headline.unit != "1" else (1.0, "")
    load = _word([verdict for _, _, verdict in rows[1:]])
    missing = why_no_interval([e for _, e, _ in rows])
    note = "Whiskers: 95 % intervals" + (f"; not for all: {missing}." if missing else ".")
    left_out = len(comparison.sides) - len(rows)
    if left_out:
        note += f" {left_out} more without a value or a place."
    title = f"{headline.title.strip()}, {load}"
    said = f"{headline.label}; {_counted([e for _, e, _ in rows])}"
    sheet = Sheet(title, said, (_FRAME_IN + _BAR_IN * len(rows),), note=note)
    (ax,) = sheet.axes
    ax.grid(visible=False)
    for k, (_, estimate, verdict) in enumerate(rows):
        assert estimate.value is not None
        color, hatch = _bar_look(verdict)
        ax.barh(-k, estimate.value * scale, 0.62, color=color, hatch=hatch, edgecolor=INK, linewidth=0.6)
        if estimate.low is not None and estimate.high is not None:
            ends = np.array([estimate.low, estimate.high]) * scale
            ax.plot(ends, [-k, -k], color=INK, marker="|", markersize=9)
    labels = [f"{named(side, _NAME)}\n{span(estimate, scale)}" for side, estimate, _ in rows]
    ax.set_yticks([-k for k in range(len(rows))], labels, linespacing=1.1)
    ax.set_ylim(-len(rows) + 0.5, 0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, greatest * scale * 1.04 or 1.0)
    number_axis(ax.xaxis, 4)
    ax.set_xlabel(_titled(headline, unit))
    sheet.keys = _keys({verdict for _, _, verdict in rows})
    told = "; ".join(f"{named(side)} {span(e, scale)}" for side, e, _ in rows)
    return sheet.finish(name, f"{headline.title.strip()} ({headline.label}), {load}: {told} {unit}.")


def _bar_look(verdict: bool | None) -> tuple[str, str]:
    if verdict:
        return BLUE, ""
    return FAINT, "" if verdict is None else "///"


def _keys(verdicts: set[bool | None]) -> list[object]:
    from matplotlib.patches import Patch

    words = {True: f"reference, {EQUAL}", None: UNTOLD, False: UNEQUAL}
    found: list[object] = []
    for verdict, word in words.items():
        if verdict in verdicts:
            color, hatch = _bar_look(verdict)
            found.append(Patch(facecolor=color, hatch=hatch, edgecolor=INK, linewidth=0.6, label=word))
    return found if verdicts != {True} else []


def _titled(headline: Headline, unit: str) -> str:
    title = headline.title.strip()
    return f"{title}, {unit}" if unit else title


def _word(verdicts: Sequence[bool | None]) -> str:
    """What a title says of the load."""
    if False in verdicts:
        return UNEQUAL
    return UNTOLD if None in verdicts else f"at {EQUAL}"


def _counted(estimates: Sequence[Estimate]) -> str:
    sizes = sorted({e.n for e in estimates})
    if len(sizes) == 1:
        return count(sizes[0], "each")
    return f"n = {sizes[0]:,} to {sizes[-1]:,}"


@in_house_style
def forest(
    comparison: Comparison, metric: str | None = None, *, side: int = 1, name: str = "forest"
) -> Drawn | None:
    """Ratios to the reference with 95 % intervals on a logarithmic axis, the line at 1 being no difference.

    With ``metric``: that headline, a row a side. Without: the headlines of `OVERVIEW` of
    ``sides[side]``. Filled: told from 1 after Holm's correction; hollow: not; a cross: without an
    interval. Grey: not at equal load, or that cannot be told. None without a ratio above 0.
    """
    rows = _rows(comparison, metric, side)
    if not rows:
        return None
    shown = rows[:MOST_ROWS]
    reference = named(comparison.sides[0].name, _SIDE)
    load = _word([verdict for _, _, _, verdict in shown])
    if metric is None:
        title = f"{named(comparison.sides[side].name, _SIDE)} against {reference}, {load}"
    else:
        headline = comparison.headline(metric)
        assert headline is not None
        title = f"{headline.title.strip()} against {reference}, {load}"
    names = OVERVIEW if metric is None else (metric,)
    used = [h for h in comparison.headlines if h.name in names]
    kinds = sorted({word for h in used for word in h.label.split(" / ")} - {"unavailable"})
    ratios = [ratio for _, ratio, _, _ in shown]
    missing = why_no_interval(ratios)
    note = "Bars: 95 % intervals of the ratio" + (f"; not for all: {missing}." if missing else ".")
    if len(rows) > len(shown):
        note += f" {len(rows) - len(shown)} more are not drawn."
    said = f"{' and '.join(kinds)}; {_counted(ratios if metric is not None else _of_sides(comparison, side))}"
    row_in = _ROW_IN if metric is None else _BAR_IN
    sheet = Sheet(title, said, (_FRAME_IN + row_in * len(shown),), note=note)
    (ax,) = sheet.axes
    ax.grid(visible=False)
    points = np.array([x for r in ratios for x in (r.value, r.low, r.high, 1.0) if x is not None and x > 0])
    low, high = limits(points, log=True)
    log_axis(ax, "x", min(low, 1 / _LEAST_RATIO_SPAN), max(high, _LEAST_RATIO_SPAN), 5)
    ax.axvline(1.0, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    for k, (_, ratio, told, verdict) in enumerate(shown):
        _ratio(ax, -k, ratio, told, BLUE if verdict else MUTED)
    places = [-k for k in range(len(shown))]
    rows_of = [named(label, _LABEL) for label, *_ in shown]
    if metric is not None:
        rows_of = [f"{label}\n{span(ratio)}" for label, (_, ratio, *_) in zip(rows_of, shown, strict=True)]
    ax.set_yticks(places, rows_of, linespacing=1.1)
    ax.set_ylim(-len(shown) + 0.4, 0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"ratio to {reference}")
    sheet.keys = _marker_keys(shown)
    words = [
        f"{named(label)} {span(ratio)}{' (told from 1)' if told else ''}"
        for label, ratio, told, _ in shown[:8]
    ]
    more = f", and {len(rows) - len(words)} more" if len(rows) > len(words) else ""
    return sheet.finish(name, f"Ratios to {reference}, {load}: {'; '.join(words)}{more}.")


def _of_sides(comparison: Comparison, side: int) -> list[Estimate]:
    """Whose n heads the overview: of the pairs, or of both sides where nothing is paired."""
    first = next(h for h in comparison.headlines if h.name in OVERVIEW and h.ratios[side - 1].value)
    ratio = first.ratios[side - 1]
    return [first.values[0], first.values[side]] if ratio.method.startswith("unpaired") else [ratio]


Row = tuple[str, Estimate, bool, bool | None]


def _rows(comparison: Comparison, metric: str | None, side: int) -> list[Row]:
    """Label, ratio, whether told from 1, verdict on the load: one of each ratio above 0."""
    found: list[Row] = []
    if metric is None:
        verdict = comparison.against[side - 1].load.verdict.equal
        for each in (h for h in comparison.headlines if h.name in OVERVIEW):
            found.append((each.title.strip(), each.ratios[side - 1], each.told(side - 1), verdict))
    else:
        headline = comparison.headline(metric)
        for k, against in enumerate(comparison.against if headline is not None else ()):
            assert headline is not None
            found.append((against.name, headline.ratios[k], headline.told(k), against.load.verdict.equal))
    return [row for row in found if row[1].value is not None and row[1].value > 0]


def _ratio(ax: Axes, y: float, ratio: Estimate, told: bool, color: str) -> None:
    assert ratio.value is not None
    known = ratio.low is not None and ratio.high is not None and ratio.low > 0
    if known and ratio.low is not None and ratio.high is not None:
        ax.plot([ratio.low, ratio.high], [y, y], color=color, linewidth=2, zorder=2)
    ax.plot(
        [ratio.value],
        [y],
        marker="o" if known else "x",
        markersize=8,
        markerfacecolor=color if told else "none",
        markeredgecolor=color,
        markeredgewidth=2,
        linestyle="",
        zorder=3,
    )


def _marker_keys(rows: Sequence[Row]) -> list[object]:
    """What the markers mean, those that are there."""
    some = {
        "told from 1 (Holm)": {"marker": "o"},
        "not told from 1": {"marker": "o", "markerfacecolor": "none"},
        "no interval": {"marker": "x"},
    }
    there = {
        "no interval" if r.low is None else "told from 1 (Holm)" if told else "not told from 1"
        for _, r, told, _ in rows
    }
    color = BLUE if rows[0][3] else MUTED
    return [
        key(color, label, linestyle="", markersize=8, markeredgewidth=2, **look)
        for label, look in some.items()
        if label in there
    ]
