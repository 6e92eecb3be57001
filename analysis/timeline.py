"""A run over time: rates, requests in flight, queue and power in equal bins; and Little's law over a window.

Instants are in run time. A rate counts events of a bin over its length. Warm-ups are in none
of the rates, but the server worked on them: they count as in flight.

Little's law (Little 1961, Oper. Res. 9; Little and Graves 2008), ``L = lambda W``, holds
for a window only up to its edges: a request sent in it may end after it, and one
from before may end in it. `littles_law` says how much of L that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import energy
from analysis.energy import Part
from analysis.run import Run, Series
from analysis.server_metrics import load_over_time
from analysis.stats.stationarity import in_flight
from loadgen.types import Floats

Gauge = Literal["running", "waiting"]
GAUGES: tuple[Gauge, ...] = ("running", "waiting")

BINS = 240
FEWEST_SAMPLES = 10
"""Of the server's gauges in a window, before their mean is taken for its load."""
REACH_PERIODS = 3.0
"""A sample of the gauges speaks for so many times their usual spacing."""
RESOLUTION_S = 1e-6
"""Instants are written so finely: the last request may seem to end so much after the window."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """K equal bins; all arrays (K,) but ``edges_s`` (K + 1,), run time.

    ``offered_rps``: measured requests due (in a closed loop: sent). ``sent_rps``; ``done_rps``:
    ended well; ``failed_rps``: ended otherwise, those never sent when they were due.
    ``in_flight``: mean number of requests sent and not ended, exact; a run that was
    killed has no record of its last ones. ``running``, ``waiting``: means of the server's own gauges,
    NaN in bins without samples, None where it never told. ``power_w``: mean watts by part, only
    of parts whose energy is known over the run's window, NaN in bins that no reading is near.
    """

    edges_s: Floats
    offered_rps: Floats
    sent_rps: Floats
    done_rps: Floats
    failed_rps: Floats
    in_flight: Floats
    running: Floats | None
    waiting: Floats | None
    power_w: Mapping[Part, Floats]

    @property
    def middle_s(self) -> Floats:
        """The middle of each bin, (K,)."""
        middle: Floats = 0.5 * (self.edges_s[:-1] + self.edges_s[1:])
        return middle

    @property
    def width_s(self) -> float:
        """The length of a bin."""
        return float(self.edges_s[-1] - self.edges_s[0]) / (len(self.edges_s) - 1)


@dataclass(frozen=True, slots=True)
class Little:
    """``L = lambda W`` over a window; a figure that is not known is None, and ``reason`` says why.

    ``in_flight``: mean requests in the system, by ``source``: the server's gauges (running and waiting),
    which know nothing of the records, or else the records, counting their time inside the window.
    ``rate_rps``: requests sent in the window over its length, whatever became of them. ``mean_s``:
    their mean time from sent to done, all of it. ``expected``: rate x mean. ``ratio``:
    in_flight / expected. ``edges``: time inside the window by the records / its length - ``expected``, in
    requests: what the edges explain of a ratio that is not 1; 0 when nobody crossed them.
    With the records as source that is all there is to explain, and ``reason`` says why the
    gauges were not taken.
    """

    in_flight: float | None
    rate_rps: float | None
    mean_s: float | None
    expected: float | None
    ratio: float | None
    source: Literal["server gauges", "records"]
    reason: str | None
    edges: float | None = None

    @property
    def agreement(self) -> float | None:
        """The gauges' mean over the records' own, time inside the window; None without both.

        Below 1 by what a request spends on the way: connecting, network, the server's front.
        """
        if self.source == "records" or self.in_flight is None or self.expected is None or self.edges is None:
            return None
        inside = self.expected + self.edges
        return self.in_flight / inside if inside > 0 else None


def timeline(
    run: Run, bins: int = BINS, *, start_s: float | None = None, end_s: float | None = None
) -> Timeline | None:
    """``bins`` equal bins over [start, end], by default the run's window; None when nothing was done.

    Raises ValueError for fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"timeline: expected at least one bin, got {bins}")
    first_s = 0.0 if start_s is None else start_s
    last_s = run.end_s if end_s is None else end_s
    if run.end_s is None or last_s is None or not last_s > first_s:
        return None
    edges_s = np.linspace(first_s, last_s, bins + 1)
    requests = run.requests
    sent_s, done_s = _instants(requests, "sent_s"), _instants(requests, "done_s")
    ok = (requests["status"] == "ok").to_numpy(dtype=bool)
    ended_s = np.where(np.isnan(done_s), _instants(requests, "due_s"), done_s)
    running, waiting = _gauges(run, edges_s)
    return Timeline(
        edges_s=edges_s,
        offered_rps=_rate(run.arrivals_s, edges_s),
        sent_rps=_rate(sent_s, edges_s),
        done_rps=_rate(done_s[ok], edges_s),
        failed_rps=_rate(ended_s[~ok], edges_s),
        in_flight=in_flight(*_held(run, last_s), edges_s),
        running=running,
        waiting=waiting,
        power_w=_power_w(run, edges_s),
    )


def littles_law(run: Run, start_s: float, end_s: float) -> Little:
    """``L = lambda W`` over [start, end); see `Little`. Never raises for missing data.

    Gauges scraped in step with evenly spaced arrivals see the same phase every time: their
    mean is then off, and the agreement with the records shows it.
    """
    if not end_s > start_s:
        return Little(None, None, None, None, None, "records", "the window is empty")
    length_s = end_s - start_s
    sent_s, done_s = _held(run, np.inf)
    here = (sent_s >= start_s) & (sent_s < end_s) & np.isfinite(done_s)
    by_gauges, why_not = _gauge_mean(run, start_s, end_s)
    by_records = float(in_flight(sent_s, np.minimum(done_s, end_s), np.array([start_s, end_s]))[0])
    source: Literal["server gauges", "records"] = "records" if by_gauges is None else "server gauges"
    found = by_records if by_gauges is None else by_gauges
    if not here.any():
        return Little(found, 0.0, None, None, None, source, "no request was sent in the window")
    rate_rps = float(np.count_nonzero(here)) / length_s
    mean_s = float(np.mean(done_s[here] - sent_s[here]))
    expected = rate_rps * mean_s
    if not expected > 0:
        return Little(found, rate_rps, mean_s, expected, None, source, "requests took no time")
    return Little(found, rate_rps, mean_s, expected, found / expected, source, why_not, by_records - expected)


def _instants(frame: pd.DataFrame, name: str) -> Floats:
    return frame[name].to_numpy(dtype=np.float64)


def _held(run: Run, open_s: float) -> tuple[Floats, Floats]:
    """Sent and done of every request that was sent, warm-ups too, (n,); one that never ended: ``open_s``."""
    sent_s, done_s = (
        np.concatenate([_instants(frame, name) for frame in (run.warmups, run.requests)])
        for name in ("sent_s", "done_s")
    )
    sent = ~np.isnan(sent_s)
    sent_s, done_s = sent_s[sent], done_s[sent]
    return sent_s, np.where(np.isnan(done_s), np.maximum(open_s, sent_s), done_s)


def _rate(at_s: Floats, edges_s: Floats) -> Floats:
    """Events per second in each bin, the last with its right edge, (K,)."""
    reaching_s = np.append(edges_s[:-1], edges_s[-1] + RESOLUTION_S)
    counts, _ = np.histogram(at_s[~np.isnan(at_s)], reaching_s)
    return np.asarray(counts / np.diff(edges_s), dtype=np.float64)


def _near(t_s: Floats, edges_s: Floats, reach_s: float) -> npt.NDArray[np.bool_]:
    """Whether a sample lies in each bin or within ``reach_s`` of it, (K,)."""
    before = np.searchsorted(t_s, edges_s[:-1] - reach_s, side="left")
    after = np.searchsorted(t_s, edges_s[1:] + reach_s, side="right")
    near: npt.NDArray[np.bool_] = after > before
    return near


def _told(run: Run, which: Gauge) -> tuple[Floats, Floats]:
    """Samples of a gauge in time order: instants and values, (n,)."""
    t_s, running, waiting = load_over_time(run)
    value = running if which == "running" else waiting
    told = ~np.isnan(value)
    order = np.argsort(t_s[told], kind="stable")
    return t_s[told][order], value[told][order]


def _mean(t_s: Floats, value: Floats, edges_s: Floats) -> Floats:
    """Mean of each bin of the straight lines through the samples, over the part they span; else NaN, (K,)."""
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (value[1:] + value[:-1]) * np.diff(t_s))])
    inside_s = np.clip(edges_s, t_s[0], t_s[-1])
    knot = np.clip(np.searchsorted(t_s, inside_s, side="right") - 1, 0, len(t_s) - 2)
    past_s = inside_s - t_s[knot]
    gap_s = np.diff(t_s)[knot]
    slope = np.where(gap_s > 0, np.diff(value)[knot] / np.where(gap_s > 0, gap_s, 1.0), 0.0)
    total = cumulative[knot] + past_s * (value[knot] + 0.5 * slope * past_s)
    spanned_s = np.diff(inside_s)
    return np.where(spanned_s > 0, np.diff(total) / np.where(spanned_s > 0, spanned_s, 1.0), np.nan)


def _gauges(run: Run, edges_s: Floats) -> tuple[Floats | None, Floats | None]:
    found: list[Floats | None] = []
    for which in GAUGES:
        t_s, value = _told(run, which)
        if len(t_s) < 2:
            found.append(None)
            continue
        near = _near(t_s, edges_s, REACH_PERIODS * float(np.median(np.diff(t_s))))
        found.append(np.where(near, _mean(t_s, value, edges_s), np.nan))
    return found[0], found[1]


def _gauge_mean(run: Run, start_s: float, end_s: float) -> tuple[float | None, str | None]:
    """Mean of running + waiting over the window, or why the gauges do not tell it."""
    edges_s, total = np.array([start_s, end_s]), 0.0
    if not len(run.metrics):
        why = (run.manifest.get("metrics") or {}).get("reason") or "the server's metrics were not collected"
        return None, str(why)
    for which in GAUGES:
        t_s, value = _told(run, which)
        inside = int(np.count_nonzero((t_s >= start_s) & (t_s <= end_s)))
        if not len(t_s):
            return None, f"the server does not tell how many requests are {which}"
        if inside < FEWEST_SAMPLES:
            return None, f"{inside} samples of the server's gauges lie in the window, {FEWEST_SAMPLES} needed"
        reach_s = REACH_PERIODS * float(np.median(np.diff(t_s)))
        within_s = np.diff(np.concatenate([[start_s], t_s[(t_s > start_s) & (t_s < end_s)], [end_s]]))
        if within_s.max() > reach_s:
            return None, f"the server's gauges have a gap of {within_s.max():.3g} s in the window"
        total += float(_mean(t_s, value, edges_s)[0])
    return total, None


def _power_w(run: Run, edges_s: Floats) -> dict[Part, Floats]:
    assert run.end_s is not None
    if run.end_s <= 0:
        return {}
    found: dict[Part, Floats] = {}
    for part, measured in energy.measure(run, np.array([0.0, run.end_s])).items():
        if measured.total_j is None:
            continue
        boards = [run.series[board.domain] for board in measured.boards]
        found[part] = np.sum([_board_w(run, series, edges_s) for series in boards], axis=0)
    return found


def _board_w(run: Run, series: Series, edges_s: Floats) -> Floats:
    """Mean watts of a series in each bin, over the part that its readings span; NaN far from any."""
    curve = energy.curve(series)
    inside_s = np.clip(edges_s, curve.t_s[0], curve.t_s[-1])
    spanned_s = np.diff(inside_s)
    mean_w = np.diff(curve.at(inside_s)) / np.where(spanned_s > 0, spanned_s, 1.0)
    near = _near(series.t_s, edges_s, energy.COVERED_PERIODS * energy.spacing_s(series, run.period_s))
    return np.where((spanned_s > 0) & near, mean_w, np.nan)
