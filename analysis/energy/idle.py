"""When the boards of a run did nothing: the stretches that its idle power is read in."""

from __future__ import annotations

import numpy as np

from analysis.run import Run
from analysis.served import gpu_of

SHORTEST_S = 0.3
LEAST_BASELINE_S = 1.0
"""Of a stretch after work and its tail, so that idle power can be read in it."""
_IDLE_MARGIN_S = 0.5
_EDGE_MARGIN_S = 0.2


def idle_stretches(run: Run) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """The longest requestless stretches before the first and after the last measured request.

    0.5 s (at most a quarter) is cut off after work: averages and the 100 ms
    publication lag behind it; and a known board's tail, if more is left. 0.2 s is
    cut off at the end, where a reading may straddle the next work, or be the odd
    last one, whose published value has another age. None when under 0.3 s remain.
    """
    t_s = [s.t_s for s in run.series.values() if len(s.t_s)]
    if not t_s:
        return None, None
    gpu = gpu_of(run)
    tail_s = 0.0 if gpu is None else gpu.tail_s
    first_s, last_s = min(float(t[0]) for t in t_s), max(float(t[-1]) for t in t_s)
    start_s = min(0.0, float(run.requests["sent_s"].min())) if len(run.requests) else 0.0
    busy = run.warmups[["sent_s", "done_s"]].dropna().sort_values("sent_s").to_numpy(dtype=np.float64)
    edges = [first_s, *busy.ravel().tolist(), start_s]
    free = [
        (edges[i], edges[i + 1], i > 0, i + 2 < len(edges))
        for i in range(0, len(edges), 2)
        if edges[i + 1] > edges[i]
    ]
    before = max(free, key=lambda s: s[1] - s[0], default=None)
    ended_s = run.requests["done_s"].max() if len(run.requests) else np.nan
    return (
        None if before is None else _trimmed(before[0], before[1], before[2], tail_s),
        None if np.isnan(ended_s) else _trimmed(float(ended_s), last_s, True, tail_s),
    )


def _trimmed(start_s: float, end_s: float, after_work: bool, tail_s: float) -> tuple[float, float] | None:
    quarter_s = max(0.0, end_s - start_s) / 4
    if after_work:
        outlasts_tail = end_s - start_s >= tail_s + LEAST_BASELINE_S
        start_s += min(_IDLE_MARGIN_S, quarter_s) + (tail_s if outlasts_tail else 0.0)
    end_s -= min(_EDGE_MARGIN_S, quarter_s)
    return (start_s, end_s) if end_s - start_s >= SHORTEST_S else None
