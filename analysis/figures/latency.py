"""Figures of latencies: how they are distributed, and how late the client was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis import latency, lint, stats
from analysis.energy import blocks_of
from analysis.figures.axes import log_axis
from analysis.figures.reduce import MOST_POINTS, ecdf
from analysis.figures.style import DASHES, INK, SERIES, VERMILLION, Drawn, Sheet, in_house_style, key
from analysis.figures.words import count, origin, span, why_no_interval
from analysis.run import Run
from analysis.words import number
from loadgen.types import Estimate, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
MARKED = (0.5, 0.95, 0.99)
SHOWN = (
    ("tpot", "TPOT"),
    ("ttft", "TTFT"),
    ("ttft_from_due", "TTFT from due"),
    ("e2e", "E2E"),
    ("e2e_from_due", "E2E from due"),
)
LEAST_SHOWN = 0.001
"""Share of requests below the axis of latencies, at most: a few very short ones would take half of it."""
STRETCHES = 400
SHORTEST_S = 1e-6
"""Least value on a logarithmic axis of lateness: what is less is drawn there."""


@in_house_style
def latency_ecdf(run: Run, *, name: str = "latency-ecdf") -> Drawn | None:
    """Shares of successful requests within a latency: TPOT, TTFT and E2E, from sent and from due.

    The band is pointwise: at each of up to 17 levels the 95 % interval of that quantile over joint time
    blocks (`analysis.stats.quantiles`), which dependence between neighbours widens, as it does not in a
    Dvoretzky-Kiefer-Wolfowitz band. Where a curve from due is that from sent, it is not drawn. None
    without a latency above 0.
    """
    found = {metric: sample for metric, sample in latency.samples(run).items() if (sample.value_s > 0).any()}
    shown = [(metric, label) for metric, label in SHOWN if metric in found]
    if not shown:
        return None
    blocks = blocks_of(run)
    kept, same = [], []
    for metric, label in shown:
        base = metric.removesuffix("_from_due")
        if base != metric and base in found and _alike(found[base].value_s, found[metric].value_s):
            same.append(label.removesuffix(" from due"))
        else:
            kept.append((metric, label))
    sheet = Sheet("Latency of successful requests", "", (3.5,))
    (ax,) = sheet.axes
    told, without, ends = [], [], []
    for k, (metric, label) in enumerate(kept):
        sample, color, dash = found[metric], SERIES[k], DASHES[k]
        above = sample.value_s > 0
        value_s, at_s = sample.value_s[above], sample.at_s[above]
        x, share = ecdf(value_s)
        ends += [float(np.quantile(value_s, LEAST_SHOWN)), float(x[-1])]
        ax.step(x, share, where="post", color=color, linestyle=dash)
        index = blocks.index(at_s)
        reason = _band(ax, stats.quantiles(value_s, index, BAND, blocks, "s"), color)
        marks = stats.quantiles(value_s, index, MARKED, blocks, "s")
        at = [m.value or np.nan for m in marks]
        ax.plot(at, MARKED, linestyle="", marker="o", markersize=6, color=color, zorder=4)
        n = "" if len(value_s) == len(run.ok) else f", n = {len(value_s):,}"
        sheet.keys.append(key(color, f"{label}{n}", linestyle=dash))
        told.append(f"{label} p50 {span(marks[0], 1e3)}, p99 {span(marks[2], 1e3)} ms")
        if reason is not None:
            without.append(reason)
    log_axis(ax, "x", min(ends) / 1.15, max(ends) * 1.15)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("latency, s")
    ax.set_ylabel("share of requests")
    band = (
        f"No bands: {without[0]}."
        if without
        else "Bands: 95 % at each quantile, widened by the dependence of neighbours in time."
    )
    also = f" {' and '.join(same)} from due are as from sent." if same else ""
    sheet.said = f"{origin(run)}; {count(len(run.ok), 'successful requests')}"
    sheet.note = f"Dots: p50, p95, p99. {band}{also}"
    return sheet.finish(name, f"Latency distributions ({origin(run)}): {'; '.join(told)}.")


def _alike(a: Floats, b: Floats) -> bool:
    """Whether two curves would be one: no value differs by 0.1 % of itself."""
    return len(a) == len(b) and bool(np.all(np.abs(a - b) <= 1e-3 * np.maximum(a, b)))


def _band(ax: Axes, estimates: Sequence[Estimate], color: str) -> str | None:
    """Draws the intervals of BAND's quantiles; the reason of the median's when none has any."""
    known = [
        (q, e.low, e.high)
        for q, e in zip(BAND, estimates, strict=True)
        if e.low is not None and e.high is not None
    ]
    if len(known) < 2:
        return why_no_interval([estimates[BAND.index(0.5)]])
    levels, low, high = (np.array(column) for column in zip(*known, strict=True))
    ax.fill_betweenx(levels, low, high, color=color, alpha=0.25, linewidth=0)
    return None


@in_house_style
def lateness(run: Run, *, name: str = "lateness") -> Drawn | None:
    """How late the client sent: sent - due over run time, and its distribution; log scales.

    Of many requests the median and the greatest of each of 400 stretches are drawn. Dashed:
    the limit that p99 must keep (`analysis.lint.lateness_limit_s`). None in a closed loop, in virtual
    time, where nothing is late, and when nothing was sent.
    """
    late_s = latency.lateness_s(run)
    if not len(late_s) or not (late_s > 0).any() or run.virtual:
        return None
    sent = run.requests["sent_s"].notna().to_numpy() & run.requests["due_s"].notna().to_numpy()
    due_s = run.requests["due_s"].to_numpy(dtype=np.float64)[sent]
    order = np.argsort(due_s, kind="stable")
    shown_s = np.maximum(late_s, SHORTEST_S)
    limit_s = lint.lateness_limit_s(run)
    why = lint.lateness_not_judged(run)
    p50, p99 = (float(q) for q in np.quantile(late_s, (0.5, 0.99)))
    worst = float(late_s.max())
    blocks = blocks_of(run)
    estimate = stats.quantiles(late_s, blocks.index(due_s), (0.99,), blocks, "s")[0]
    missing = why_no_interval([estimate])
    note = (
        f"p99 {span(estimate, 1e3)} ms, 95 % interval over joint time blocks."
        if missing is None
        else f"p99 {number(1e3 * p99)} ms; no interval: {missing}."
    )
    if why is not None:
        note += f" Not judged: {why}."
    if (late_s < SHORTEST_S).any():
        note += " Less than 1 µs is drawn at 1 µs."
    said = f"{origin(run)}; {count(len(late_s), 'requests sent')}"
    sheet = Sheet("Lateness of the client, sent \u2212 due", said, (2.3, 2.3), note=note)
    over, share = sheet.axes
    many = len(late_s) > MOST_POINTS
    t, y = due_s[order], shown_s[order] * 1e3
    if many:
        cuts = np.linspace(0, len(t), STRETCHES + 1).astype(np.int64)
        middle = np.array([np.median(part) for part in np.split(y, cuts[1:-1])])
        over.plot(t[(cuts[:-1] + cuts[1:]) // 2], middle, color=SERIES[2], linewidth=1.6, zorder=3)
        t, y = t[cuts[:-1]], np.maximum.reduceat(y, cuts[:-1])
    over.plot(t, y, "o", markersize=2.6, markeredgewidth=0, color=SERIES[0])
    x, level = ecdf(shown_s)
    share.step(x * 1e3, level, where="post", color=SERIES[0])
    share.plot([max(p99, SHORTEST_S) * 1e3], [0.99], "o", color=INK, markersize=6)
    ends = (
        min(float(np.quantile(shown_s, LEAST_SHOWN)), limit_s) * 1e3 / 1.3,
        max(worst, limit_s) * 1e3 * 1.3,
    )
    log_axis(over, "y", *ends, 5)
    log_axis(share, "x", *ends, 6)
    over.axhline(limit_s * 1e3, color=VERMILLION, linestyle=DASHES[1])
    share.axvline(limit_s * 1e3, color=VERMILLION, linestyle=DASHES[1])
    share.set_ylim(0, 1.03)
    over.set_xlabel("due, s of run time")
    over.set_ylabel("lateness, ms")
    share.set_xlabel("lateness, ms")
    share.set_ylabel("share of requests")
    what = "greatest of a stretch" if many else "request"
    dots = key(SERIES[0], what, linestyle="", marker="o", markersize=4)
    limit = key(VERMILLION, f"limit for p99, {number(1e3 * limit_s)} ms", linestyle=DASHES[1])
    middles = [key(SERIES[2], "median of a stretch")] if many else []
    sheet.keys = [dots, *middles, limit, key(INK, "p99", linestyle="", marker="o", markersize=6)]
    alt = (
        f"Lateness of {len(late_s):,} requests: p50 {number(1e3 * p50)}, p99 {number(1e3 * p99)}, "
        f"greatest {number(1e3 * worst)} ms; the limit for p99 is {number(1e3 * limit_s)} ms."
    )
    return sheet.finish(name, alt)
