"""The figure of power over run time, aligned with what arrived and what ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis import energy
from analysis.energy import Part, PartEnergy
from analysis.energy.parts import unusable
from analysis.figures.axes import number_axis, steps
from analysis.figures.reduce import extremes
from analysis.figures.style import (
    AMBER,
    BLUE,
    DASHES,
    FAINT,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILLION,
    Drawn,
    Sheet,
    in_house_style,
    key,
)
from analysis.figures.words import count, labelled, named
from analysis.run import Run, Series
from analysis.study.windows import Span
from analysis.timeline import Timeline
from analysis.words import number
from loadgen.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 400
MOST_RUG = 300
EVENTS_A_BIN = 8
"""A bin of the rates holds so many requests on average, so that its rate is one and no comb."""
_CHAR = 0.024
"""Of the axis, that a character of a stage's name takes at most."""


@in_house_style
def power_timeline(
    run: Run,
    timeline: Timeline | None,
    *,
    steady: tuple[float, float] | None = None,
    stages: Sequence[Span] = (),
    name: str = "power-timeline",
) -> Drawn | None:
    """Watts over run time, from the first reading to the last, and below it what arrived and what ended.

    Of each part the mean in up to 400 bins, as a step, by the energies of its series; for the GPU the
    least and greatest reading of each bin as well, where a series reads power. Dashed: idle power.
    None without power over the window.
    """
    if timeline is None or run.end_s is None or not run.end_s > 0:
        return None
    parts = energy.measure(run, np.array([0.0, run.end_s]))
    known: dict[Part, PartEnergy] = {
        part: found for part, found in parts.items() if found.total_j is not None
    }
    if not known:
        return None
    edges_s = _edges(run, known)
    labels = " and ".join(sorted({labelled(found.label) for found in known.values()}))
    n = len(run.requests)
    note = _missing_parts(parts) + "Sums of readings, not samples: no interval."
    said = f"power {labels}; {count(n, 'requests')}"
    sheet = Sheet("Power and arrivals over the run", said, (2.7, 1.9), note=note, share_x=True)
    power, rates = sheet.axes
    top, told = 0.0, []
    looks: dict[Part, tuple[str, object]] = {
        "gpu": (BLUE, DASHES[0]),
        "cpu": (GREEN, DASHES[1]),
        "ram": (PURPLE, DASHES[2]),
    }
    for part, found in known.items():
        color, dash = looks[part]
        boards = [run.series[board.domain] for board in found.boards]
        watts = _mean_w(run, boards, edges_s)
        if part == "gpu":
            low, high = _readings(run, found, edges_s)
            if np.isfinite(high).any():
                power.fill_between(edges_s[:-1], low, high, step="post", color=color, alpha=0.25, linewidth=0)
                sheet.keys.append(_patch(color, "GPU readings"))
                top = max(top, float(np.nanmax(high)))
        power.step(
            edges_s, np.append(watts, watts[-1:]), where="post", color=color, linestyle=dash, linewidth=1.6
        )
        sheet.keys.append(key(color, f"{part.upper()} mean", linestyle=dash))
        top = max(top, float(np.nanmax(watts)))
        mean_w = found.mean_power_w
        if mean_w is not None:
            told.append(
                f"{part.upper()} mean {number(mean_w)} W, greatest bin {number(float(np.nanmax(watts)))} W"
            )
    gpu = known.get("gpu")
    if gpu is not None and gpu.idle_power_w is not None:
        power.axhline(gpu.idle_power_w, color=VERMILLION, linestyle=DASHES[3], linewidth=1.6)
        sheet.keys.append(key(VERMILLION, f"GPU idle {number(gpu.idle_power_w)} W", linestyle=DASHES[3]))
        told.append(f"GPU idle {number(gpu.idle_power_w)} W")
    power.set_ylim(0, top * 1.06)
    power.set_ylabel("power, W")
    peak = _rates(rates, run, timeline, sheet)
    rates.set_xlabel("run time, s")
    rates.set_xlim(float(edges_s[0]), float(edges_s[-1]))
    _marks(sheet, run.end_s, steady, stages)
    alt = (
        f"Power and arrivals over {number(run.end_s)} s: {'; '.join(told)}; "
        f"up to {number(peak)} requests per second due in a bin of {number(timeline.width_s)} s."
    )
    return sheet.finish(name, alt)


def _edges(run: Run, known: dict[Part, PartEnergy]) -> Floats:
    """Bins from the first to the last reading, none shorter than two of the slowest series' values."""
    series = [run.series[board.domain] for found in known.values() for board in found.boards]
    first_s = min(float(s.t_s[0]) for s in series)
    last_s = max(float(s.t_s[-1]) for s in series)
    boards = [board for found in known.values() for board in found.boards]
    slowest_s = max([run.period_s or 0.0, *(board.update_s or 0.0 for board in boards)])
    bins = BINS if slowest_s <= 0 else min(BINS, max(1, int((last_s - first_s) / (2 * slowest_s))))
    return np.linspace(first_s, last_s, bins + 1)


def _mean_w(run: Run, boards: Sequence[Series], edges_s: Floats) -> Floats:
    """Mean watts of the boards together in each bin, (K,); NaN where a board was not read."""
    total = np.zeros(len(edges_s) - 1)
    for series in boards:
        curve = energy.curve(series, edges_s)
        inside_s = np.clip(edges_s, curve.t_s[0], curve.t_s[-1])
        spanned_s = np.diff(inside_s)
        half = spanned_s >= 0.5 * np.diff(edges_s)
        mean_w = np.diff(curve.at(inside_s)) / np.where(half, spanned_s, 1.0)
        reach_s = energy.COVERED_PERIODS * energy.spacing_s(series, run.period_s)
        after = np.searchsorted(series.t_s, edges_s[1:] + reach_s, side="right")
        near = after > np.searchsorted(series.t_s, edges_s[:-1] - reach_s, side="left")
        total += np.where(half & near, mean_w, np.nan)
    return total


def _readings(run: Run, found: PartEnergy, edges_s: Floats) -> tuple[Floats, Floats]:
    """Least and greatest power read in each bin, summed over the boards: where each has a power series."""
    low, high = np.zeros(len(edges_s) - 1), np.zeros(len(edges_s) - 1)
    for board in found.boards:
        names = (f"{energy.board_of(board.domain)}.instant", board.domain)
        series = next(
            (run.series[n] for n in names if n in run.series and not run.series[n].cumulative), None
        )
        if series is None or unusable(series, 0.0, run.end_s or 0.0, run.period_s) is not None:
            return np.full(len(low), np.nan), np.full(len(low), np.nan)
        least, most = extremes(series.t_s, series.value, edges_s)
        low, high = low + least, high + most
    return low, high


def _rates(ax: Axes, run: Run, timeline: Timeline, sheet: Sheet) -> float:
    """Rates of requests due, done and failed, and when they arrived; the greatest rate due."""
    fewer = max(1, -(-len(timeline.offered_rps) * EVENTS_A_BIN // max(len(run.requests), 1)))
    starts = np.arange(0, len(timeline.offered_rps), min(fewer, len(timeline.offered_rps)))
    edges_s = np.append(timeline.edges_s[starts], timeline.edges_s[-1])
    bins = np.diff(np.append(starts, len(timeline.offered_rps)))

    def joined(rate: Floats) -> Floats:
        mean: Floats = np.add.reduceat(rate, starts) / bins
        return mean

    due = "sent" if run.closed_loop else "due"
    lines = [
        (joined(timeline.offered_rps), INK, DASHES[0], due),
        (joined(timeline.done_rps), AMBER, DASHES[1], "done"),
        (joined(timeline.failed_rps), VERMILLION, DASHES[2], "failed"),
    ]
    for rate, color, dash, label in lines:
        if label == "failed" and not rate.any():
            continue
        steps(ax, edges_s, rate, color, dash)
        sheet.keys.append(key(color, label, linestyle=dash))
    peak = float(max(rate.max() for rate, *_ in lines))
    room = peak * 1.08 or 1.0
    at_s = run.requests["due_s"].dropna().to_numpy(dtype=np.float64)
    if 0 < len(at_s) <= MOST_RUG:
        ax.vlines(at_s, -0.16 * room, -0.03 * room, color=MUTED, linewidth=0.8)
        ax.set_ylim(-0.18 * room, room)
        sheet.note = f"Ticks below 0: one for each arrival. {sheet.note}"
    else:
        ax.set_ylim(0, room)
    number_axis(ax.yaxis, 4)
    ax.set_yticks([t for t in ax.get_yticks() if 0 <= t <= room])
    ax.set_ylabel("requests / s")
    return float(timeline.offered_rps.max())


def _marks(sheet: Sheet, end_s: float, steady: tuple[float, float] | None, stages: Sequence[Span]) -> None:
    """The window's edges, stages, and where the run was steady."""
    for ax in sheet.axes:
        if steady is not None:
            ax.axvspan(*steady, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
        for at_s in (0.0, end_s):
            ax.axvline(at_s, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        for stage in stages:
            ax.axvline(stage.start_s, color=MUTED, linewidth=0.8, zorder=1)
    sheet.keys.append(key(MUTED, "window", linewidth=1.2, linestyle=(0, (1, 2))))
    if steady is not None:
        sheet.keys.append(_patch(FAINT, "steady"))
    if stages:
        sheet.keys.append(key(MUTED, "stage", linewidth=0.8))
    first_s, last_s = sheet.axes[-1].get_xlim()
    for stage in stages:
        label = named(stage.name, 12)
        if stage.end_s - stage.start_s < len(label) * _CHAR * (last_s - first_s):
            continue
        sheet.axes[-1].annotate(
            label,
            (stage.start_s, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
        )


def _missing_parts(parts: dict[Part, PartEnergy]) -> str:
    without = [f"{p.upper()}: {found.reason}. " for p, found in parts.items() if found.total_j is None]
    return "".join(without)


def _patch(color: str, label: str, hatch: str = "") -> object:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, alpha=0.45 if not hatch else 1.0, edgecolor=INK, linewidth=0, label=label)


_LEVELS = ((VERMILLION, "///"), (BLUE, ""), (PURPLE, "xx"))
