"""How often the 95 % intervals hold the truth: simulated queues whose long-run values are known.

    python benchmarks/coverage.py [--replications 2000] [--processes 2] [--case NAME]... [--json]

Two servers under Poisson arrivals, in equilibrium from the first request on:

- ``single``: one request at a time, service proportional to an exponential number of tokens
  (M/M/1). Closed form: the wait exceeds t with probability rho exp(-(1 - rho) t / s), and
  J/token = (P_idle + (P_busy - P_idle) rho) s / (rho E[tokens]).
- ``batch``: takes all that wait, up to 16, for 0.2 s + 0.05 s per request; power grows with the
  batch. TTFT is the wait and a prefill of 10 ms per request of the batch. Its truth is 32
  million requests of other seeds, at 0.95 ten times as many; its standard error is printed.

One row a case: utilisation, requests of a run, the share of the runs that get an interval,
the share of those that hold the truth with its own binomial interval (Wilson, 95 %), misses
below and above, and the median half-width. A run that is refused an interval is no miss, so
the share refused stands beside the coverage: choosing runs by what they look like would bias
the coverage of the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from analysis import stats
from loadgen.types import Estimate, Floats

SERVICE_S, TOKENS, PREFILL_S = 0.05, 52.0, 0.02
IDLE_W, BUSY_W = 120.0, 450.0
BATCH, BATCH_S, REQUEST_S, BATCH_PREFILL_S = 16, 0.2, 0.05, 0.01
BATCH_W, REQUEST_W = 300.0, 20.0
PERIOD_S = 0.1
LIMIT_S = 0.5
METRICS = ("ttft p99", "ttft p50", "ttft mean", "in 0.5 s", "J/token", "J/request")


@dataclass(frozen=True)
class Case:
    """``requests``: of one run, in equilibrium."""

    server: str
    utilisation: float
    requests: int

    @property
    def name(self) -> str:
        return f"{self.server}-{self.utilisation:g}-{self.requests}"

    @property
    def rate_rps(self) -> float:
        capacity_rps = 1 / SERVICE_S if self.server == "single" else BATCH / (BATCH_S + REQUEST_S * BATCH)
        return self.utilisation * capacity_rps


CASES = (
    Case("single", 0.5, 500),
    Case("batch", 0.5, 500),
    Case("single", 0.5, 10_000),
    Case("single", 0.8, 10_000),
    Case("single", 0.8, 100_000),
    Case("single", 0.95, 10_000),
    Case("single", 0.95, 100_000),
    Case("batch", 0.5, 10_000),
    Case("batch", 0.8, 10_000),
    Case("batch", 0.95, 10_000),
    Case("batch", 0.8, 100_000),
    Case("batch", 0.95, 100_000),
    Case("single", 0.95, 1_000_000),
    Case("batch", 0.95, 1_000_000),
)


@dataclass(frozen=True)
class QueueRun:
    """One simulated run. ``t_s``, ``energy_j``: corners of its cumulative energy, piecewise linear."""

    due_s: Floats
    ttft_s: Floats
    tokens: Floats
    t_s: Floats
    energy_j: Floats


def runs(case: Case, count: int, rng: np.random.Generator) -> Iterator[QueueRun]:
    """``count`` independent runs; time 0 is where the window begins, its end the last request's due time."""
    if case.server == "single":
        yield from (_single(case, rng) for _ in range(count))
    else:
        yield from _batch(case, count, rng)


def _single(case: Case, rng: np.random.Generator) -> QueueRun:
    """Lindley's recursion W' = max(0, W + S - A), solved by a running minimum."""
    n, rho = case.requests, case.utilisation
    gap_s = rng.exponential(1 / case.rate_rps, n)
    tokens = rng.exponential(TOKENS, n)
    service_s = tokens * (SERVICE_S / TOKENS)
    # The work found at time 0, in equilibrium: none, or exponential; it is one more, first job.
    found_s = rng.exponential(SERVICE_S / (1 - rho)) if rng.random() < rho else 0.0
    due_s = np.cumsum(gap_s)
    work_s = np.concatenate([[found_s], service_s[:-1]])
    walk_s = np.cumsum(work_s - gap_s)
    wait_s = walk_s - np.minimum(np.minimum.accumulate(walk_s), 0.0)
    start_s = np.append(0.0, due_s + wait_s)
    return QueueRun(
        due_s,
        wait_s + PREFILL_S,
        tokens,
        *_energy(start_s, np.append(found_s, service_s), np.full(n + 1, BUSY_W)),
    )


def _batch(case: Case, count: int, rng: np.random.Generator) -> Iterator[QueueRun]:
    """Batches of all lanes side by side, one Python step each; the first fifth of a lane is left out."""
    burn = max(case.requests // 5, 2000)
    n = case.requests + burn
    due_s = np.cumsum(rng.exponential(1 / case.rate_rps, (count, n)), axis=1)
    padded_s = np.concatenate([due_s, np.full((count, BATCH), np.inf)], axis=1)
    lane = np.arange(count)
    at, free_s = np.zeros(count, dtype=np.intp), np.zeros(count)
    starts_s, sizes = [], []
    while (at < n).any():
        begin_s = np.maximum(free_s, padded_s[lane, at])
        size = (padded_s[lane[:, None], at[:, None] + np.arange(BATCH)] <= begin_s[:, None]).sum(axis=1)
        size[at >= n] = 0
        starts_s.append(begin_s)
        sizes.append(size)
        at += size
        free_s = begin_s + BATCH_S + REQUEST_S * size
    all_starts_s, all_sizes = np.array(starts_s), np.array(sizes)
    for i in range(count):
        size = all_sizes[:, i][all_sizes[:, i] > 0]
        begin_s = all_starts_s[: len(size), i]
        ttft_s = np.repeat(begin_s + BATCH_PREFILL_S * size, size) - due_s[i]
        zero_s = due_s[i, burn]
        corners = _energy(begin_s - zero_s, BATCH_S + REQUEST_S * size, BATCH_W + REQUEST_W * size)
        yield QueueRun(
            due_s[i, burn:] - zero_s, ttft_s[burn:], rng.exponential(TOKENS, case.requests), *corners
        )


def _energy(start_s: Floats, busy_s: Floats, power_w: Floats) -> tuple[Floats, Floats]:
    end_s = start_s + busy_s
    t_s = np.column_stack([start_s, end_s]).ravel()
    idle_s = np.append(start_s[0], start_s[1:] - end_s[:-1])
    spent_j = np.column_stack([idle_s * IDLE_W, busy_s * power_w]).ravel()
    return t_s, np.cumsum(spent_j)


def estimates(run: QueueRun) -> dict[str, Estimate]:
    """What a summary would say of the run, by name of METRICS."""
    blocks = stats.choose_blocks(0.0, float(run.due_s[-1]), run.due_s, run.ttft_s, PERIOD_S)
    index = blocks.index(run.due_s)
    energy_j = np.diff(np.interp(blocks.edges_s, run.t_s, run.energy_j))
    p50, p99 = stats.quantiles(run.ttft_s, index, (0.5, 0.99), blocks, "s")
    tokens, requests = blocks.sums(run.tokens, index), blocks.counts(index)
    met = blocks.counts(index[run.ttft_s <= LIMIT_S])
    swing_s = blocks.sums(run.ttft_s - run.ttft_s.mean(), index)
    n = len(run.due_s)
    return {
        "ttft p99": p99,
        "ttft p50": p50,
        "ttft mean": stats.mean(run.ttft_s, index, blocks, "s"),
        "in 0.5 s": stats.share(met, requests, blocks, "goodput", [swing_s]),
        "J/token": stats.ratio(energy_j, tokens, blocks, "J", n),
        "J/request": stats.ratio(energy_j, requests, blocks, "J", n),
    }


@cache
def truth(
    server: str, utilisation: float, seed: int, processes: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Long-run values, and their standard errors (0 in closed form)."""
    case = Case(server, utilisation, 200_000)
    if server == "single":
        rho = utilisation
        scale_s = SERVICE_S / (1 - rho)

        def quantile_s(q: float) -> float:
            return PREFILL_S + scale_s * max(0.0, math.log(rho / (1 - q)))

        power_w = IDLE_W + (BUSY_W - IDLE_W) * rho
        known = {
            "ttft p99": quantile_s(0.99),
            "ttft p50": quantile_s(0.5),
            "ttft mean": PREFILL_S + rho * scale_s,
            "in 0.5 s": 1 - rho * math.exp(-(LIMIT_S - PREFILL_S) / scale_s),
            "J/token": power_w / (case.rate_rps * TOKENS),
            "J/request": power_w / case.rate_rps,
        }
        return known, dict.fromkeys(known, 0.0)
    parts = 20 if utilisation < 0.9 else 200
    jobs = [(case, 8, [seed, 0x7247, part]) for part in range(parts)]
    with ProcessPoolExecutor(processes) as pool:
        found = np.array(list(pool.map(_long_run, jobs)))
    spread = found.std(axis=0, ddof=1) / math.sqrt(parts)
    return (
        dict(zip(METRICS, map(float, found.mean(axis=0)), strict=True)),
        dict(zip(METRICS, map(float, spread), strict=True)),
    )


def _long_run(job: tuple[Case, int, list[int]]) -> Floats:
    case, lanes, seed = job
    taken = list(runs(case, lanes, np.random.default_rng(seed)))
    ttft_s = np.concatenate([run.ttft_s for run in taken])
    energy_j = sum(float(np.diff(np.interp([0, run.due_s[-1]], run.t_s, run.energy_j))[0]) for run in taken)
    requests = len(ttft_s)
    p50, p99 = np.quantile(ttft_s, [0.5, 0.99])
    # A request's tokens are independent of the queue: the long-run mean is used for them.
    per_request_j = energy_j / requests
    met = float(np.mean(ttft_s <= LIMIT_S))
    return np.array([p99, p50, ttft_s.mean(), met, per_request_j / TOKENS, per_request_j])


def _judge(job: tuple[Case, int, list[int]]) -> list[list[tuple[float, float | None, float | None]]]:
    case, count, seed = job
    rows = []
    for run in runs(case, count, np.random.default_rng(seed)):
        found = estimates(run)
        rows.append([(float(e.value or 0.0), e.low, e.high) for e in (found[m] for m in METRICS)])
    return rows


@dataclass(frozen=True)
class Row:
    """Coverage of one metric in one case; the bounds are the coverage's own 95 % interval."""

    case: str
    metric: str
    truth: float
    truth_error: float
    replications: int
    given: int
    held: int
    below: int
    above: int
    low: float
    high: float
    half_width: float | None

    @property
    def verdict(self) -> str:
        if self.given <= 0.05 * self.replications:
            return "refused"
        if self.high < 0.935:
            return "TOO NARROW"
        if self.low > 0.965:
            return "wide"
        inside = 0.935 <= self.held / self.given <= 0.965
        return "holds" if inside else "narrow" if self.held / self.given < 0.95 else "wide"


def wilson(held: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (0, 1) without any trial."""
    if not n:
        return 0.0, 1.0
    z2 = 1.959964**2
    p = held / n
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    centre = p + z2 / (2 * n)
    return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)


def cover(case: Case, replications: int, processes: int, seed: int) -> list[Row]:
    """Simulates the case and counts, metric by metric."""
    known, error = truth(case.server, case.utilisation, seed, processes)
    lanes = max(1, min(50, 10_000_000 // case.requests))
    sizes = [lanes] * (replications // lanes) + [replications % lanes] * (replications % lanes > 0)
    jobs = [(case, size, [seed, 0xC0, part]) for part, size in enumerate(sizes)]
    with ProcessPoolExecutor(processes) as pool:
        found = [row for rows in pool.map(_judge, jobs) for row in rows]
    table = []
    for i, metric in enumerate(METRICS):
        ends = [(low, high) for _, low, high in (row[i] for row in found) if low is not None is not high]
        below = sum(high < known[metric] for _, high in ends if high is not None)
        above = sum(low > known[metric] for low, _ in ends if low is not None)
        widths = [(high - low) / 2 for low, high in ends if low is not None and high is not None]
        held = len(ends) - below - above
        low, high = wilson(held, len(ends))
        half = float(np.median(widths)) / known[metric] if widths else None
        counts = (replications, len(ends), held, below, above)
        table.append(Row(case.name, metric, known[metric], error[metric], *counts, low, high, half))
    return table


def _print(row: Row) -> None:
    share = row.given / row.replications
    covered = f"{100 * row.held / max(row.given, 1):6.2f} [{100 * row.low:.2f}, {100 * row.high:.2f}]"
    covered = covered if row.given > 0.05 * row.replications else "-"
    half = "-" if row.half_width is None else f"{100 * row.half_width:.2g} %"
    misses = f"{row.below}/{row.above}"
    print(
        f"{row.case:20s} {row.metric:10s} {row.truth:9.4g} +-{row.truth_error:<7.1g} {100 * share:6.1f} "
        f"{covered:24s} {misses:>9s} {half:>7s}  {row.verdict}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--case", action="append", help=", ".join(case.name for case in CASES))
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    if not arguments.json:
        print(
            f"{'case':20s} {'metric':10s} {'truth':>9s} {'':9s} {'given %':>6s} {'coverage %':24s} "
            f"{'below/above':>9s} {'half':>5s}"
        )
    for case in CASES:
        if arguments.case and case.name not in arguments.case:
            continue
        started = time.monotonic()
        for row in cover(case, arguments.replications, arguments.processes, arguments.seed):
            if arguments.json:
                print(json.dumps(asdict(row) | {"verdict": row.verdict}), flush=True)
            else:
                _print(row)
        print(f"  {case.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
