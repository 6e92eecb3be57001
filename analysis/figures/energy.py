"""Figures of joules: how they spread over requests, and what they went to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.attribution import Attributed
from analysis.energy import PARTS, Part, PartEnergy, blocks_of
from analysis.figures.axes import limits, log_axis, number_axis
from analysis.figures.style import (
    AMBER,
    BLUE,
    DASHES,
    FAINT,
    GREEN,
    HATCHES,
    INK,
    PURPLE,
    VERMILLION,
    Drawn,
    Sheet,
    in_house_style,
    key,
)
from analysis.figures.words import count, labelled, prefixed, span, why_no_interval
from analysis.run import Run
from analysis.stats import Blocks
from analysis.words import number
from loadgen.types import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WHOLE = "not split"
BINS = 48
LOG_FROM = 15.0
"""Ratio of the greatest to the least value from which an axis is logarithmic."""
QUANTILES = (0.5, 0.95, 0.99)


@in_house_style
def energy_histogram(
    attributed: Attributed, run: Run | None = None, *, name: str = "energy-histogram"
) -> Drawn | None:
    """Joules of each successful request of the window: counts on a log axis, so that the tail is seen.

    ``run``: what the intervals of mean, p50, p95 and p99 are made from, its time blocks; without it there
    are none. None when no successful request has a known energy.
    """
    rows = successes(attributed)
    joules = rows["total_j"].to_numpy(dtype=np.float64)
    if not len(joules):
        return None
    estimates = _location(rows, run)
    scale, unit = prefixed(float(np.median(joules)), "J")
    x = joules * scale
    log = bool(x.min() > 0 and x.max() / x.min() > LOG_FROM)
    missing = why_no_interval(list(estimates.values()))
    note = (
        f"Brackets: 95 % intervals over joint time blocks{_but(missing, estimates)}."
        if missing is None or any(e.low is not None for e in estimates.values())
        else f"No intervals: {missing}."
    )
    said = f"{labelled(attributed.label)}; {count(len(x), 'successful requests')}; method {attributed.method}"
    sheet = Sheet("Energy of a request", said, (3.1,), note=note)
    (ax,) = sheet.axes
    ends = limits(x, log=log, pad=0.02)
    room = min(BINS, max(8, int(np.sqrt(len(x)) * 2)))
    edges = np.geomspace(*ends, room + 1) if log else np.linspace(*ends, room + 1)
    counts, _ = np.histogram(x, edges)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, linewidth=0, zorder=2)
    top = max(float(counts.max()), 1.0)
    log_axis(ax, "y", 0.7, top * 2.2, 5)
    if log:
        log_axis(ax, "x", *ends)
    else:
        ax.set_xlim(*ends)
    marks = zip(estimates.items(), (INK, *(VERMILLION,) * 3), ("-", *DASHES[1:4]), strict=True)
    for (label, estimate), color, dash in marks:
        if estimate.value is None:
            continue
        if label == "mean":
            _interval(ax, estimate, scale, top * 1.55)
            sheet.keys.append(key(color, f"mean {span(estimate, scale)}", marker="D", markersize=6))
        else:
            ax.axvline(estimate.value * scale, color=color, linestyle=dash, linewidth=1.8, zorder=3)
            sheet.keys.append(key(color, f"{label} {span(estimate, scale)}", linestyle=dash))
    ax.set_xlabel(f"{unit} per request")
    ax.set_ylabel("requests")
    told = ", ".join(f"{label} {span(e, scale)}" for label, e in estimates.items())
    alt = (
        f"Histogram of the energy of {len(x):,} successful requests ({attributed.label}): {told} {unit}; "
        f"least {number(float(x.min()))}, greatest {number(float(x.max()))} {unit}."
    )
    return sheet.finish(name, alt)


def _but(missing: str | None, estimates: Mapping[str, Estimate]) -> str:
    if missing is None:
        return ""
    without = [label for label, e in estimates.items() if e.low is None]
    return f"; none for {', '.join(without)} ({missing})"


def successes(attributed: Attributed) -> pd.DataFrame:
    rows = attributed.requests
    kept = (
        (rows["status"] == "ok") & (rows.index >= 0) & np.isfinite(rows["total_j"].to_numpy(dtype=np.float64))
    )
    found: pd.DataFrame = rows[kept]
    return found


def _location(rows: pd.DataFrame, run: Run | None) -> dict[str, Estimate]:
    """mean, p50, p95 and p99 of the requests' joules."""
    joules = rows["total_j"].to_numpy(dtype=np.float64)
    if run is None:
        blocks = Blocks(np.array([0.0, 1.0]), None, stats.LEVEL, "the run was not given")
        index = np.zeros(len(joules), dtype=np.intp)
    else:
        blocks = blocks_of(run)
        due_s = run.requests.drop_duplicates("id").set_index("id")["due_s"]
        index = blocks.index(due_s.reindex(rows.index).to_numpy(dtype=np.float64))
    found = {"mean": stats.mean(joules, index, blocks, "J")}
    names = [f"p{100 * q:g}" for q in QUANTILES]
    found.update(zip(names, stats.quantiles(joules, index, QUANTILES, blocks, "J"), strict=True))
    return found


def _interval(ax: Axes, estimate: Estimate, scale: float, y: float) -> None:
    """A diamond at the value and its interval, above the bars."""
    assert estimate.value is not None
    value = estimate.value * scale
    if estimate.low is not None and estimate.high is not None:
        ax.plot([estimate.low * scale, estimate.high * scale], [y, y], color=INK, marker="|", markersize=9)
    ax.plot([value], [y], color=INK, marker="D", markersize=6)


@in_house_style
def phase_components(
    attributed: Attributed | Mapping[Part, Attributed] | None,
    parts: Mapping[Part, PartEnergy],
    *,
    name: str = "phase-components",
) -> Drawn | None:
    """What the energy of GPU, CPU and RAM went to: a bar each, of the window's joules.

    Of an attributed part: idle, prefill and decode of the successes, all that failed requests and
    warm-ups cost, and what nobody's work explains. Of others: idle power x window and the rest. ``parts``:
    of the same window; what is certain of a total by the readings is drawn at its bar's end. None when no
    part has an energy.
    """
    shares: Mapping[Part, Attributed] = (
        {}
        if attributed is None
        else {"gpu": attributed}
        if isinstance(attributed, Attributed)
        else attributed
    )
    totals: dict[Part, float] = {
        part: shares[part].energy_j if part in shares else float(parts[part].total_j or 0.0)
        for part in PARTS
        if part in shares or (part in parts and parts[part].total_j is not None)
    }
    if not totals or max(totals.values()) <= 0:
        return None
    scale, unit = prefixed(max(totals.values()), "J")
    unknown = [
        f"{part.upper()} not known: {parts[part].reason}"
        for part in PARTS
        if part in parts and part not in totals
    ]
    bounded = [part for part in totals if _bounds(part, totals, parts) is not None]
    whole = [part.upper() for part in totals if part not in shares]
    note = "; ".join(
        [
            "whiskers: what the readings leave open, sensor gain aside"
            if bounded
            else "no interval: one window's energy is one number",
            *([f"{' and '.join(whole)} not attributed to requests"] if whole and shares else []),
            *unknown,
        ]
    )
    labels = sorted({str(_label(part, shares, parts)) for part in totals})
    n = next((len(successes(found)) for found in shares.values()), None)
    said = " and ".join(labels) + ("" if n is None else f"; {count(n, 'successful requests')}")
    body_in = (0.75 + 0.62 * len(totals),)
    sheet = Sheet("Where the energy went", said, body_in, note=note[:1].upper() + note[1:] + ".")
    (ax,) = sheet.axes
    ax.grid(visible=False)
    places = {part: -float(k) for k, part in enumerate(totals)}
    handles: dict[str, Any] = {}
    sentences = []
    for part, y in places.items():
        left = 0.0
        spoken = []
        for what, joules in _components(part, totals[part], shares, parts).items():
            color, hatch = _LOOK[what]
            drawn = ax.barh(
                y,
                joules * scale,
                0.62,
                left,
                color=color,
                hatch=hatch,
                edgecolor=INK,
                linewidth=0.6,
                label=what,
            )
            left += joules * scale
            share = joules / totals[part] if totals[part] else 0.0
            handles.setdefault(what, (drawn, []))[1].append(f"{part.upper()} {_percent(share)}")
            spoken.append(f"{what} {_percent(share)}")
        bounds = _bounds(part, totals, parts)
        end = left
        if bounds is not None:
            low, high = (b * scale for b in bounds)
            ax.plot([low, high], [y, y], color=INK, marker="|", markersize=10, linewidth=1.6, zorder=4)
            end = max(left, high)
        said_total = f" {number(totals[part] * scale)} {unit}"
        ax.annotate(said_total, (end, y), xytext=(3, 0), textcoords="offset points", va="center")
        sentences.append(f"{part.upper()} {number(totals[part] * scale)} {unit}, of it {', '.join(spoken)}")
    rows = [f"{part.upper()}\n{labelled(_label(part, shares, parts))}" for part in places]
    ax.set_yticks(list(places.values()), rows, linespacing=1.0)
    ax.set_ylim(-len(places) + 0.5, 0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, max(totals.values()) * scale * 1.24)
    number_axis(ax.xaxis)
    ax.set_xlabel(f"energy of the window, {unit}")
    split = {word.split()[0] for what, (_, told) in handles.items() if what != WHOLE for word in told}
    for what, (drawn, told) in handles.items():
        if what != WHOLE:
            drawn.set_label(f"{what} {', '.join(told) if len(split) > 1 else told[0].split(' ', 1)[1]}")
        sheet.keys.append(drawn)
    return sheet.finish(name, f"Energy of the window by component: {'; '.join(sentences)}.")


_LOOK = {
    "idle": (FAINT, ""),
    "prefill": (VERMILLION, "///"),
    "decode": (BLUE, ""),
    "successes": (BLUE, ""),
    "above idle": (GREEN, HATCHES[4]),
    WHOLE: (GREEN, ""),
    "failed": (PURPLE, "xx"),
    "warm-ups": (AMBER, "++"),
    "unattributed": ("none", "++"),
}


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def _label(part: Part, shares: Mapping[Part, Attributed], parts: Mapping[Part, PartEnergy]) -> str | None:
    return shares[part].label if part in shares else parts[part].label


def _bounds(
    part: Part, totals: Mapping[Part, float], parts: Mapping[Part, PartEnergy]
) -> tuple[float, float] | None:
    """Certain bounds of the same total: not of another window's."""
    known = parts.get(part)
    if known is None or known.within_j is None or known.total_j is None:
        return None
    same = abs(known.total_j - totals[part]) <= 1e-6 * max(known.total_j, 1e-9)
    return known.within_j if same else None


def _components(
    part: Part, total_j: float, shares: Mapping[Part, Attributed], parts: Mapping[Part, PartEnergy]
) -> dict[str, float]:
    """Joules by what they went to, those that a bar can show; they sum to the total."""
    if part not in shares:
        static_j, active_j = parts[part].static_j, parts[part].active_j
        if static_j is None or active_j is None or active_j < 0:
            return {WHOLE: total_j}
        return {"idle": static_j, "above idle": active_j}
    found = shares[part]
    rows = found.requests
    measured = rows[rows.index >= 0]
    ok = measured[measured["status"] == "ok"]
    split = {"idle": "idle_j", "prefill": "prefill_j", "decode": "decode_j"}
    sums = {what: float(ok[column].sum(skipna=False)) for what, column in split.items()}
    if any(np.isnan(joules) for joules in sums.values()):
        sums = {"successes": float(ok["total_j"].sum())}
    sums["failed"] = float(measured.loc[measured["status"] != "ok", "total_j"].sum())
    sums["warm-ups"] = found.warmup_j
    sums["unattributed"] = found.unattributed_j
    return {what: joules for what, joules in sums.items() if joules > 1e-6 * total_j}
