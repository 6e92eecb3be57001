"""Inputs of figures made by hand, and each figure drawn once."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from made_runs import constant, record, run_of
from matplotlib.text import Text

import analysis
from analysis import energy, figures
from analysis.attribution import Attributed
from analysis.compare.comparison import Against, Comparison, Headline
from analysis.compare.load import SameLoad
from analysis.compare.sides import Side
from analysis.figures.style import Drawn
from analysis.fit.model import Fitted, Prediction, Range, RequestCost, Residuals
from analysis.run import Run
from analysis.stats.equal_load import Verdict
from analysis.timeline import timeline
from loadgen.types import Estimate


def attributed(joules: np.ndarray, status: str = "ok", extra_j: float = 0.0, first: int = 0) -> Attributed:
    rows = pd.DataFrame({"status": status, "idle_j": 0.25 * joules, "prefill_j": 0.25 * joules})
    rows = rows.assign(decode_j=0.5 * joules, total_j=joules)
    rows.index = pd.RangeIndex(first, first + len(joules))
    return Attributed("work", "measured", 0.0, 100.0, float(joules.sum()) + extra_j, extra_j, rows)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    why = "made" if low is not None else "no interval: made without"
    return Estimate(value, "J", low, high, 0.95, 50, why)


def comparison(equal: bool | None = True, name: str = "poisson") -> Comparison:
    sides = tuple(Side(n, ()) for n in ("fixed", name, "closed"))
    load = SameLoad(Verdict(equal, ()), "")
    against = tuple(Against(s.name, False, "", load, "none", "", ()) for s in sides[1:])
    values = (estimate(10.0, 9.0, 11.0), estimate(20.0, 18.0, 22.0), estimate(9.5))
    ratios = (estimate(2.0, 1.7, 2.4), estimate(0.95))
    headline = Headline(
        "energy_per_request_j",
        "GPU energy per success",
        "J",
        "gpu",
        "measured",
        values,
        values[1:],
        ratios,
        (0.001, None),
        (0.002, None),
        ("", ""),
    )
    return Comparison(sides, (headline,), against, (), (), 0.05)


def fitted(n: int = 60) -> Fitted:
    x = np.linspace(1.0, 60.0, n)
    observed = x + np.where(np.arange(n) % 2, 1.0, -1.0)
    observed[-1] += 500.0
    left = Residuals({"s": x}, observed, x)
    span = {"s": Range.of(x)}
    return Fitted("E_prefill", "E = A s + B", "J", (), 0.9, 1.0, None, 2.0, n, span, np.eye(1), 5, 1, left)


def late_run(n: int = 60) -> Run:
    records = [record(i, float(i), sent_s=i + 0.001 * (1 + i % 5)) for i in range(n)]
    return run_of(records, constant(300.0, n + 1.0))


class Line:
    """A model that knows that a request costs a tenth of a joule for each token, give or take 3 and 4 J."""

    load = "batched"

    def get(self, name: str) -> str:
        return name

    def request(self, prompt: float, reply: float) -> RequestCost:
        prefill, decode = (
            Prediction(0.1 * v, 0.1 * v - h, 0.1 * v + h, ()) for v, h in ((prompt, 3), (reply, 4))
        )
        return RequestCost(None, None, prefill, decode, 0.1 * (prompt + reply), ())


@functools.cache
def every(path: Path) -> dict[str, Drawn]:
    """Each figure, of the embedded run where it can be had from one."""
    run = analysis.load(path)
    attribution = analysis.Attribution(run)
    window, over = attribution.window(), timeline(run)
    assert over is not None and run.end_s is not None
    parts = energy.measure(run, np.array([0.0, run.end_s]))
    slices = attribution.windows(np.linspace(0.0, run.end_s, 21))
    drawn = [
        figures.energy_histogram(window, run),
        figures.phase_components(window, parts),
        figures.energy_by_length(run, window, Line()),  # type: ignore[arg-type]
        figures.power_timeline(run, over, steady=(20.0, 60.0)),
        figures.in_flight_timeline(run, over, slices),
        figures.latency_ecdf(run),
        figures.lateness(late_run()),
        figures.shaping_bars(comparison(None, "a name that is much too long for the margin of a figure")),
        figures.forest(comparison(False), "energy_per_request_j"),
        figures.forest(comparison(), name="forest-of-all"),
        figures.residuals(fitted(), label="simulated"),
    ]
    found = {d.name: d for d in drawn if d is not None}
    assert len(found) == len(drawn)
    return found


def all_text(drawn: Drawn) -> str:
    return " ".join(t.get_text().replace("\n", " ") for t in drawn.figure.findobj(Text) if t.get_visible())
