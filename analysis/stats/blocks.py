"""Equal time blocks of a run's window, shared by all its metrics.

Neighbouring requests share a batch, a queue and a board, so they are not independent:
errors computed from single requests are too small. The window is cut into K equal time
blocks; energy, requests and tokens of a block always stay together, and every metric is
judged by how its blocks vary (`analysis.stats.autocorrelation`, `analysis.stats`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.stats import autocorrelation
from analysis.stats.ends import needs
from loadgen.types import Floats

Ints = npt.NDArray[np.intp]

LEVEL = 0.95
MOST_BLOCKS = 240
FEWEST_BLOCKS = 40
REQUESTS_PER_BLOCK = 2
PERIODS_PER_BLOCK = 10


@dataclass(frozen=True, slots=True)
class Blocks:
    """Equal time blocks and the waves over them.

    ``edges_s``: shape (K + 1,). ``waves``: shape (K // 3, K), see `autocorrelation.waves`;
    None when no interval can be given, and then ``reason`` says why. ``level``: the
    intervals' confidence. ``requests``: of the window, 0 where not told.
    """

    edges_s: Floats
    waves: Floats | None
    level: float
    reason: str | None
    requests: int = 0

    @property
    def count(self) -> int:
        return len(self.edges_s) - 1

    @property
    def length_s(self) -> float:
        return float(self.edges_s[-1] - self.edges_s[0]) / self.count

    def index(self, t_s: Floats) -> Ints:
        """The block of each instant, shape (n,); instants outside go to the nearest block."""
        found = np.searchsorted(self.edges_s, t_s, side="right") - 1
        return np.clip(found, 0, self.count - 1).astype(np.intp)

    def sums(self, values: Floats, block: Ints) -> Floats:
        """Sum of the values of each block, shape (K,)."""
        return np.bincount(block, weights=values, minlength=self.count).astype(np.float64)

    def counts(self, block: Ints) -> Floats:
        """Number of values in each block, shape (K,)."""
        return np.bincount(block, minlength=self.count).astype(np.float64)


def choose_blocks(
    start_s: float,
    end_s: float,
    due_s: Floats,
    latency_s: Floats,
    period_s: float | None = None,
    *,
    update_s: float | None = None,
    level: float = LEVEL,
) -> Blocks:
    """Cuts [start, end] into blocks that suit the data.

    A block spans at least a median latency, 10 sampling periods and ``update_s`` (between
    new values of the slowest power series), and holds 2 requests on
    average; there are at most 240. With fewer than 40 blocks, or when the arrivals fill
    fewer than 40 (bursts: few events, nothing stationary), there are no intervals. How far the
    blocks depend on each other is measured, metric by metric, not decided here.

    ``due_s``: shape (n,), the requests' instants; ``latency_s``: shape (m,), of the
    successful ones.
    """
    n, window_s = len(due_s), end_s - start_s
    if not window_s > 0:
        return Blocks(np.array([start_s, start_s + 1.0]), None, level, "the window is empty", n)
    spans_s = {
        "a median latency": float(np.median(latency_s)) if len(latency_s) else 0.0,
        f"{PERIODS_PER_BLOCK} power samples": PERIODS_PER_BLOCK * (period_s or 0.0),
        "one new value of the slowest power series": update_s or 0.0,
    }
    what = max(spans_s, key=lambda name: spans_s[name])
    shortest_s = max(spans_s[what], window_s / MOST_BLOCKS)
    fitting = int(window_s / shortest_s * (1 + 1e-12))
    count = max(1, min(fitting, n // REQUESTS_PER_BLOCK))
    blocks = Blocks(np.linspace(start_s, end_s, count + 1), None, level, None, n)
    if not n:
        return replace(blocks, reason="there are no requests")
    inside = due_s[(due_s >= start_s) & (due_s <= end_s)]
    if n > 1 and len(inside) and float(np.ptp(inside)) < shortest_s:
        return replace(blocks, reason="all requests were due at about the same time, which is one event")
    if count < FEWEST_BLOCKS:
        longer = FEWEST_BLOCKS * max(REQUESTS_PER_BLOCK / n, shortest_s / window_s)
        why = (
            f"{n} request{'s are' if n != 1 else ' is'} too few"
            if n < FEWEST_BLOCKS * REQUESTS_PER_BLOCK
            else f"the run is too short: its {window_s:.3g} s are {fitting} time blocks "
            f"of {shortest_s:.3g} s ({what}), {FEWEST_BLOCKS} are needed"
        )
        return replace(blocks, reason=f"{why}; {needs(longer, n)}")
    filled = int(np.count_nonzero(blocks.counts(blocks.index(inside))))
    if filled < FEWEST_BLOCKS:
        why = f"requests arrived in only {filled} of {count} time blocks, {FEWEST_BLOCKS} are needed"
        return replace(blocks, reason=f"{why}; {needs(FEWEST_BLOCKS / max(filled, 1), n)}")
    return replace(blocks, waves=autocorrelation.waves(count))
