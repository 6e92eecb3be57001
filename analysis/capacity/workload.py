"""What is asked of the replicas: rates over the day, and requests drawn again and again the same.

Common random numbers: a stream of n requests has unit-rate instants u and lengths that depend on the
plan's seed, the stream's number and n only. At the rate lambda they come at u / lambda, so that two
rates, two boards or two policies differ by nothing else. Of a trace a replica sees a share, drawn with
numbers that are common as well (`_replayed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.capacity.plan import HOURS, CapacityPlan
from loadgen.arrivals import Gamma, Poisson, describe
from loadgen.emulation.jobs import Jobs, Lengths, constant_lengths
from loadgen.errors import ConfigError
from loadgen.prompts.jsonl import JsonlSource
from loadgen.prompts.recording import Recording, read_recording
from loadgen.prompts.sharegpt import SharegptSource
from loadgen.types import Floats, PromptSource

HOUR_S = 3600.0
_DAY_S = HOURS * HOUR_S
_SHORT_BIN_S = 300.0
_MOST_BINS = 100_000
_TIMES, _LENGTHS = 0x74, 0x6C
Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]


@dataclass(frozen=True, slots=True)
class Demand:
    """Rates wanted of the whole service, 1/s, one a bin, and the bins' lengths in seconds, (k,) each."""

    rates_rps: Floats
    bins_s: Floats
    said: str

    @property
    def mean_rps(self) -> float:
        """Over all of the time."""
        return float(self.rates_rps @ self.bins_s / self.bins_s.sum())

    @property
    def peak_rps(self) -> float:
        """Of the busiest bin."""
        return float(self.rates_rps.max())


@dataclass(slots=True)
class Workload:
    """Demand, law of arrivals and lengths of a plan; draws are kept. ``notes``: what a reader must know."""

    plan: CapacityPlan
    demand: Demand
    arrivals: str
    recording: Recording | None
    observed: Pairs | None
    notes: tuple[str, ...] = ()
    _drawn: dict[tuple[int, int], tuple[Floats, Lengths]] = field(default_factory=dict)

    def jobs(self, rate_rps: float, n: int, stream: int) -> Jobs:
        """n requests of a stream at this mean rate, all released when wanted."""
        if self.arrivals == "trace":
            assert self.recording is not None
            times_s, lengths = _replayed(self.recording, self.demand, rate_rps, n, [self.plan.seed, stream])
            return Jobs(times_s, times_s, lengths)
        unit, lengths = self._draw(n, stream)
        times_s = unit / rate_rps
        return Jobs(times_s, times_s, lengths)

    def _draw(self, n: int, stream: int) -> tuple[Floats, Lengths]:
        drawn = self._drawn.get((n, stream))
        if drawn is None:
            drawn = self._drawn[n, stream] = self._new(n, stream)
        return drawn

    def _new(self, n: int, stream: int) -> tuple[Floats, Lengths]:
        seed, law = self.plan.seed, self.plan.arrivals
        times, lengths = (np.random.default_rng([seed, stream, what]) for what in (_TIMES, _LENGTHS))
        process = Poisson(1.0) if law.burstiness is None else Gamma(1.0, law.burstiness)
        return process.times(n, times), self._lengths(n, lengths)

    def _lengths(self, n: int, rng: np.random.Generator) -> Lengths:
        given = self.plan.lengths
        limit = None if given is None else given.max_new_tokens
        if self.observed is not None:
            rows = rng.integers(len(self.observed[0]), size=n)
            return _limited(self.observed[0][rows], self.observed[1][rows], limit)
        assert given is not None and given.prompt_tokens is not None and given.output_tokens is not None
        if not given.prompt_cv and not given.output_cv:
            alike = constant_lengths(n, given.prompt_tokens, given.output_tokens)
            return _limited(alike.prompt_tokens, alike.reply_tokens, limit)
        prompt = lognormal_tokens(given.prompt_tokens, given.prompt_cv, n, rng)
        return _limited(prompt, lognormal_tokens(given.output_tokens, given.output_cv, n, rng), limit)


def lognormal_tokens(mean: float, cv: float, n: int, rng: np.random.Generator) -> Ints:
    """n lengths of this mean and coefficient of variation, lognormal, rounded, at least 1."""
    sigma2 = np.log1p(cv**2)
    drawn = np.exp(np.log(mean) - sigma2 / 2 + np.sqrt(sigma2) * rng.standard_normal(n))
    return np.asarray(np.maximum(np.rint(drawn), 1), dtype=np.int64)


def _limited(prompt: Ints, reply: Ints, limit: int | None) -> Lengths:
    """Lengths whose replies are cut at what the clients ask for, which is what is reserved."""
    prompt, reply = np.maximum(prompt, 1), np.maximum(reply, 1)
    if limit is None:
        return Lengths(prompt, reply, reply)
    return Lengths(prompt, np.minimum(reply, limit), np.full(len(reply), limit))


def _replayed(
    recording: Recording, demand: Demand, rate_rps: float, n: int, seeds: list[int]
) -> tuple[Floats, Lengths]:
    """n requests that a replica of this rate sees of the recording, round and round from a drawn start.

    The recording's clock runs evenly within a bin and is stretched between bins, so that what is left is
    how requests come within one, at the recording's mean rate M. A replica of p M, p < 1, sees each
    request with probability p, as a balancer that deals at random has it; of p >= 1 it sees floor(p)
    whole copies, each with a start of its own, and one such share: more users alike. The skips of a share
    are geometric by inversion, so that a higher rate sees the same requests sooner. Times in seconds from
    the first.
    """
    edges_s = np.concatenate([[0.0], np.cumsum(demand.bins_s)])
    mass = np.concatenate([[0.0], np.cumsum(demand.rates_rps * demand.bins_s)])
    count, span_s = len(recording.times_s), float(edges_s[-1])
    even_s = np.interp(recording.times_s, edges_s, mass) * span_s / mass[-1]
    copies = rate_rps * span_s / count
    whole, part = int(copies), copies - int(copies)
    most = int(1.3 * n / max(copies, 1.0)) + 64
    while True:
        found = [
            _copy(count, most, 1.0 if k < whole else part, [*seeds, k]) for k in range(whole + (part > 0))
        ]
        at_s = [even_s[rows % count] + rows // count * span_s - even_s[rows[0] % count] for rows in found]
        until_s = min(float(times_s[-1]) for times_s in at_s)
        times_s, rows = np.concatenate(at_s), np.concatenate(found) % count
        order = np.argsort(times_s, kind="stable")
        order = order[: np.searchsorted(times_s[order], until_s, side="right")][:n]
        if len(order) == n:
            break
        most *= 2
    times_s = times_s[order] - times_s[order[0]]
    tokens = recording.context_tokens[rows[order]], recording.generated_tokens[rows[order]]
    return np.asarray(times_s, dtype=np.float64), _limited(*tokens, None)


def _copy(count: int, n: int, share: float, seeds: list[int]) -> Ints:
    """n rows, counted on over the rounds, of a copy from a drawn start, of which a share is seen."""
    rng = np.random.default_rng([*seeds, _TIMES])
    start = int(rng.integers(count))
    if share >= 1:
        return start + np.arange(n)
    skips = np.ceil(np.log1p(-rng.random(n)) / np.log1p(-share)).clip(1)
    return np.asarray(start + np.cumsum(skips), dtype=np.int64)


def workload_of(plan: CapacityPlan) -> Workload:
    """Reads what the plan names. Raises ConfigError for a file that does not hold what is needed."""
    traffic, notes = plan.traffic, list[str]()
    recording = None if traffic.trace is None else read_recording(traffic.trace)
    if recording is None:
        demand = _given(plan)
    else:
        demand = _recorded(recording, traffic.trace, traffic.bin_s, traffic.scale)
        shape = describe(recording.times_s)
        notes += recording.notes
        if shape.gap_cv is not None:
            notes.append(f"{_name(traffic.trace)}: gap CV {shape.gap_cv:.2f} (1 Poisson)")
    law = plan.arrivals.law or ("trace" if recording is not None and plan.lengths is None else "poisson")
    observed = None
    if plan.lengths is None and recording is not None:
        observed = recording.context_tokens, recording.generated_tokens
    elif plan.lengths is not None:
        observed, more = _observed(plan)
        notes += more
    return Workload(plan, demand, law, recording, observed, tuple(notes))


def day_rates(mean_rps: float, peak_to_mean: float, peak_hour: int) -> Floats:
    """24 hourly rates of one peak, ``mean exp(k cos(2 pi (h - peak) / 24)) / norm``; shape (24,), 1/s.

    A von Mises curve: positive at every hour for any ratio; k is found so that peak over mean is the
    ratio.
    """
    angle = 2 * np.pi * (np.arange(HOURS) - peak_hour) / HOURS

    def ratio(k: float) -> float:
        return float(1 / np.exp(k * (np.cos(angle) - 1)).mean())

    low, high = 0.0, 1.0
    while ratio(high) < peak_to_mean:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < peak_to_mean else (low, middle)
    rates = np.exp(low * (np.cos(angle) - 1))
    return np.asarray(mean_rps * rates / rates.mean(), dtype=np.float64)


def _given(plan: CapacityPlan) -> Demand:
    traffic = plan.traffic
    if traffic.rate_rps is not None:
        return Demand(np.array([traffic.rate_rps]), np.array([HOUR_S]), f"{traffic.rate_rps:g} requests/s")
    if traffic.day is not None:
        rates, said = np.array(traffic.day, dtype=np.float64), "24 hourly rates"
    else:
        assert traffic.mean_rps is not None
        rates = day_rates(traffic.mean_rps, traffic.peak_to_mean, traffic.peak_hour)
        said = f"a day of one peak, {traffic.peak_to_mean:g} times the mean, at {traffic.peak_hour}:00"
    return Demand(rates, np.full(HOURS, HOUR_S), said)


def _recorded(recording: Recording, path: Path | None, bin_s: float | None, scale: float) -> Demand:
    """Rates over bins; what is left at the end joins the last bin where it is less than half of one."""
    times_s, n = recording.times_s, len(recording.times_s)
    span_s = float(times_s[-1])
    if n < 2 or span_s <= 0:
        raise ConfigError(f"{path}: expected requests at two instants or more, got {n} at one")
    span_s *= n / (n - 1)  # the last request's own gap
    bin_s = bin_s or (HOUR_S if span_s >= _DAY_S else _SHORT_BIN_S)
    if span_s / bin_s > _MOST_BINS:
        raise ConfigError(
            f"traffic.bin_s: expected >= {span_s / _MOST_BINS:.2g}, a part in {_MOST_BINS:,} of the trace's "
            f"{span_s:.4g} s, got {bin_s:g}"
        )
    bins = max(1, round(span_s / bin_s))
    edges_s = np.append(np.arange(bins) * bin_s, span_s)
    counts = np.histogram(times_s, edges_s)[0]
    widths_s = np.diff(edges_s)
    times = "" if scale == 1 else f", rates times {scale:g}"
    return Demand(
        scale * counts / widths_s, widths_s, f"{n:,} requests of {_name(path)} in bins of {bin_s:g} s{times}"
    )


def _observed(plan: CapacityPlan) -> tuple[Pairs | None, list[str]]:
    lengths = plan.lengths
    assert lengths is not None
    if lengths.trace is not None:
        found = read_recording(lengths.trace)
        return (found.context_tokens, found.generated_tokens), list(found.notes)
    path = lengths.jsonl or lengths.sharegpt
    if path is None:
        return None, []
    source = JsonlSource(path) if lengths.jsonl is not None else SharegptSource(path)
    return _counted(source, path), list(source.notes)


def _counted(source: PromptSource, path: Path) -> Pairs:
    bodies = [request.body for request in source.requests(np.random.default_rng(0))]
    lacking = sum("output_tokens" not in body for body in bodies)
    if lacking:
        raise ConfigError(
            f"{path}: expected output_tokens in every record, to know the replies; {lacking} of "
            f"{len(bodies)} have none"
        )
    return (
        np.array([body["prompt_tokens"] for body in bodies], dtype=np.int64),
        np.array([body["output_tokens"] for body in bodies], dtype=np.int64),
    )


def _name(path: Path | None) -> str:
    return "" if path is None else path.name
