"""The figure of requests in flight: what they were waiting for, and what their phases drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.attribution import PARTS as PHASES
from analysis.attribution import Attributed
from analysis.figures.axes import steps
from analysis.figures.style import (
    BLUE,
    DASHES,
    FAINT,
    INK,
    PURPLE,
    VERMILLION,
    Drawn,
    Sheet,
    in_house_style,
    key,
)
from analysis.figures.words import count, origin
from analysis.run import Run
from analysis.stats.stationarity import in_flight
from analysis.timeline import Timeline
from analysis.words import number
from loadgen.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SLACK_S = 1e-9
_LEVELS = ((VERMILLION, "///"), (BLUE, ""), (PURPLE, "xx"))


@in_house_style
def in_flight_timeline(
    run: Run,
    timeline: Timeline | None,
    attributed: Sequence[Attributed] | None = None,
    *,
    name: str = "in-flight",
) -> Drawn | None:
    """Requests in flight over run time: waiting for the first token, getting tokens, or without any.

    Means over the timeline's bins, by the client's stamps; the server's own gauges as lines beside them.
    ``attributed``: the energy of consecutive windows, `Attribution.windows`: a second panel with the
    watts of idle, prefill, decode and what no request explains. None when nothing was sent.
    """
    if timeline is None:
        return None
    edges_s = timeline.edges_s
    sent, first, done = (run.requests[c].to_numpy(dtype=np.float64) for c in ("sent_s", "first_s", "done_s"))
    there = np.isfinite(sent) & np.isfinite(done)
    if not there.any():
        return None
    sent, first, done = sent[there], first[there], done[there]
    told = np.isfinite(first)
    levels = {
        "before the first token": in_flight(sent[told], first[told], edges_s),
        "getting tokens": in_flight(first[told], done[told], edges_s),
        "no token came": in_flight(sent[~told], done[~told], edges_s),
    }
    split = _phase_power(attributed) if attributed else None
    said = f"{origin(run)}; {count(int(there.sum()), 'requests sent')}"
    note = f"Means over bins of {number(timeline.width_s)} s by the client's stamps: of all, so no interval."
    heights = (3.0,) if split is None else (2.6, 2.3)
    sheet = Sheet("Requests in flight, and their phase", said, heights, note=note, share_x=True)
    ax = sheet.axes[0]
    peak = _stack(sheet, ax, edges_s, levels, dict(zip(levels, _LEVELS, strict=True)))
    gauges = (("running", timeline.running, DASHES[0]), ("waiting", timeline.waiting, DASHES[2]))
    for label, gauge, dash in gauges:
        if gauge is None or not np.isfinite(gauge).any():
            continue
        steps(ax, edges_s, gauge, INK, dash)
        sheet.keys.append(key(INK, f"server: {label}", linestyle=dash, linewidth=1.4))
        peak = max(peak, float(np.nanmax(gauge)))
    ax.set_ylim(0, peak * 1.06 or 1.0)
    ax.set_xlim(float(edges_s[0]), float(edges_s[-1]))
    ax.set_ylabel("requests in flight")
    if split is not None:
        _power_panel(sheet, *split)
    sheet.axes[-1].set_xlabel("run time, s")
    means = ", ".join(
        f"{label} {number(float(level.mean()))}" for label, level in levels.items() if level.any()
    )
    length_s, mean = float(edges_s[-1] - edges_s[0]), float(timeline.in_flight.mean())
    alt = (
        f"Requests in flight over {number(length_s)} s: mean {number(mean)}, "
        f"greatest bin {number(peak)}; on average {means}."
    )
    return sheet.finish(name, alt)


def _phase_power(attributed: Sequence[Attributed]) -> tuple[Floats, dict[str, Floats]] | None:
    """Edges (K + 1,) and watts (K,) by phase of consecutive windows; None where no phases are known."""
    edges = np.array([attributed[0].start_s, *(a.end_s for a in attributed)])
    apart = np.abs(np.array([a.start_s for a in attributed]) - edges[:-1]) > _SLACK_S * max(edges[-1], 1.0)
    if apart.any() or np.isnan([list(a.phases_j.values()) for a in attributed]).any():
        return None
    length_s = np.diff(edges)
    watts = {p.removesuffix("_j"): np.array([a.phases_j[p] for a in attributed]) / length_s for p in PHASES}
    watts["unattributed"] = np.array([a.unattributed_j for a in attributed]) / length_s
    return edges, watts


def _power_panel(sheet: Sheet, edges_s: Floats, watts: dict[str, Floats]) -> None:
    ax = sheet.axes[1]
    looks = {
        "idle": (FAINT, ""),
        "prefill": (VERMILLION, "///"),
        "decode": (BLUE, ""),
        "unattributed": ("none", "++"),
    }
    named_w = {f"{label}, W": level for label, level in watts.items()}
    top = _stack(sheet, ax, edges_s, named_w, {f"{label}, W": look for label, look in looks.items()})
    ax.set_ylim(0, top * 1.06 or 1.0)
    ax.set_ylabel("power, W")


def _stack(
    sheet: Sheet,
    ax: Axes,
    edges_s: Floats,
    levels: Mapping[str, Floats],
    looks: Mapping[str, tuple[str, str]],
) -> float:
    """Levels (K,) on top of each other, those that are not 0 all the time; how high they reach."""
    base = np.zeros(len(edges_s) - 1)
    for label, level in levels.items():
        if not level.any():
            continue
        color, hatch = looks[label]
        top = base + np.maximum(level, 0.0)
        area = ax.fill_between(
            edges_s,
            np.append(base, base[-1:]),
            np.append(top, top[-1:]),
            step="post",
            facecolor=color,
            hatch=hatch,
            edgecolor=INK if hatch else color,
            linewidth=0.0,
            label=label,
        )
        sheet.keys.append(area)
        base = top
    return float(base.max())
