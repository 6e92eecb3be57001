"""Latencies of successful requests, each defined once.

============================ ===========================================================
``ttft``                     first token - sent
``ttft_from_due``            first token - due: what a user felt, the client's delay in it
``ttft_from_demand``         first token - demand: shaping's hold in it as well
``e2e`` (and ``_from_*``)    last byte - sent (due, demand)
``tpot``                     (e2e - ttft) / (output tokens - 1), requests of 2 tokens or more
``itl``                      gaps between the reads that brought tokens, pooled over requests
``lateness``                 sent - due of every request that was sent, successful or not
============================ ===========================================================

A gap of ``itl`` lies between chunks; a chunk can carry several tokens, so
``tokens_per_chunk`` belongs beside it. Other tools differ: guidellm's TPOT counts
the first token, aiperf's ITL is a mean per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from analysis import stats
from analysis.run import Run
from analysis.stats import Blocks, Ints
from loadgen.types import Estimate, Floats

STATISTICS = ("mean", "std", "p50", "p90", "p95", "p99")
QUANTILES: Mapping[str, float] = MappingProxyType({"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99})
METRICS = (
    "ttft",
    "ttft_from_due",
    "ttft_from_demand",
    "tpot",
    "itl",
    "e2e",
    "e2e_from_due",
    "e2e_from_demand",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one metric, seconds, shape (n,), and the instant each belongs to, shape (n,)."""

    value_s: Floats
    at_s: Floats


def samples(run: Run) -> dict[str, Sample]:
    """Every latency metric of the run's successful requests, keyed by METRICS.

    A value belongs to the instant its request was due, a gap of ``itl`` to the read that ended
    it. A request that lacks a stamp, or a token count for ``tpot``, is left out of that metric only.
    """
    ok = run.ok
    due_s = _column(ok, "due_s")
    found = {metric: _present(value_s, due_s) for metric, value_s in per_request(ok).items()}
    found["itl"] = _gaps(ok)
    return {metric: found[metric] for metric in METRICS}


def per_request(requests: pd.DataFrame) -> dict[str, Floats]:
    """Every metric but ``itl``, seconds, a value a row of ``requests``, (n,); NaN where it has none."""
    sent_s, due_s, demand_s = (_column(requests, name) for name in ("sent_s", "due_s", "demand_s"))
    first_s, done_s = _column(requests, "first_s"), _column(requests, "done_s")
    tokens = _column(requests, "output_tokens")
    return {
        "ttft": _between(sent_s, first_s),
        "ttft_from_due": _between(due_s, first_s),
        "ttft_from_demand": _between(demand_s, first_s),
        "tpot": _between(first_s, done_s) / np.where(tokens >= 2, tokens - 1, np.nan),
        "e2e": _between(sent_s, done_s),
        "e2e_from_due": _between(due_s, done_s),
        "e2e_from_demand": _between(demand_s, done_s),
    }


def lateness_s(run: Run) -> Floats:
    """sent - due of every measured request that was sent, shape (n,), seconds.

    Includes the hold of a concurrency cap's queue. Empty in a closed loop, where
    a request is due when it is sent.
    """
    if run.closed_loop:
        return np.empty(0)
    late = _column(run.requests, "sent_s") - _column(run.requests, "due_s")
    return late[~np.isnan(late)]


def summarize_sample(sample: Sample, blocks: Blocks) -> dict[str, Estimate]:
    """mean, std, p50, p90, p95 and p99 of a sample, with intervals over the joint blocks."""
    index = blocks.index(sample.at_s)
    found = {
        "mean": stats.mean(sample.value_s, index, blocks, "s"),
        "std": stats.std(sample.value_s, index, blocks, "s"),
    }
    at = list(QUANTILES.values())
    found.update(zip(QUANTILES, stats.quantiles(sample.value_s, index, at, blocks, "s"), strict=True))
    return found


def tokens_per_chunk(run: Run) -> float | None:
    """Mean tokens of one read that brought tokens, over successful requests; None without any.

    Tokens as `Record.output_tokens` counts them: a server's own count knows those that
    came with another's text.
    """
    counted = (run.requests["status"] == "ok") & run.requests["output_tokens"].notna()
    reads = sum(map(len, run.requests.loc[counted, "chunk_tokens"]))
    return float(run.requests.loc[counted, "output_tokens"].sum()) / reads if reads else None


def _column(frame: pd.DataFrame, name: str) -> Floats:
    return np.asarray(frame[name].to_numpy(), dtype=np.float64)


def _between(start_s: Floats, end_s: Floats) -> Floats:
    """``end_s - start_s``. To the nanosecond, so that equal latencies stay equal: what a difference of
    large instants leaves grows with the instants, and as the only variation it would pass for a drift."""
    return np.asarray(np.round(end_s - start_s, 9), dtype=np.float64)


def _present(value_s: Floats, at_s: Floats) -> Sample:
    known = ~np.isnan(value_s)
    return Sample(value_s[known], at_s[known])


def _gaps(ok: pd.DataFrame) -> Sample:
    chunks = list(ok["chunk_s"])
    sizes: Ints = np.array([len(c) for c in chunks], dtype=np.intp)
    if not sizes.sum():
        return Sample(np.empty(0), np.empty(0))
    joined = np.concatenate([np.array(c, dtype=np.float64) for c in chunks if c])
    owner = np.repeat(np.arange(len(chunks)), sizes)
    same = owner[1:] == owner[:-1]
    return Sample(_between(joined[:-1][same], joined[1:][same]), joined[1:][same])
