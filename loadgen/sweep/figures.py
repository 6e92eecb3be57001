"""The figures of one point of a sweep: names, units, and how each follows from what became of the requests.

The direct path and the whole path (``--http``) go through the same function, so that a figure means
the same in both. A failed request is in no figure of successes; one that does not exist is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loadgen.arrivals import describe
from loadgen.types import Floats

Better = Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a sweep's table. ``better``: which end a planner wants; None: neither."""

    unit: str
    words: str
    better: Better | None = None


def _latencies() -> dict[str, Figure]:
    words = {
        "ttft": "time to first token",
        "tpot": "time per output token",
        "e2e": "time to last token",
        "hold": "held before sending",
        "ttft_from_demand": "first token, from demand",
        "e2e_from_demand": "last token, from demand",
    }
    levels = ("mean", "p50", "p95", "p99")
    return {f"{m}_{k}_s": Figure("s", f"{said}, {k}", "low") for m, said in words.items() for k in levels}


FIGURES: dict[str, Figure] = {
    "requests": Figure("1", "requests"),
    "ok": Figure("1", "served", "high"),
    "rejected": Figure("1", "sent, not served", "low"),
    "dropped": Figure("1", "never sent", "low"),
    "duration_s": Figure("s", "duration"),
    "realised_gap_s": Figure("s", "mean gap as realised"),
    "gap_cv": Figure("1", "CV of the gaps as due"),
    "rate_rps": Figure("1/s", "served per second", "high"),
    "energy_j": Figure("J", "GPU energy", "low"),
    "energy_per_success_j": Figure("J", "GPU energy per success", "low"),
    "energy_low_j": Figure("J", "lower end of the envelope"),
    "energy_high_j": Figure("J", "upper end of the envelope"),
    "energy_per_token_j": Figure("J", "GPU energy per output token", "low"),
    "mean_power_w": Figure("W", "mean power", "low"),
    "busy_share": Figure("1", "share of time busy"),
    **_latencies(),
    "goodput_share": Figure("1", "within the SLO", "high"),
    "goodput_rps": Figure("1/s", "within the SLO per second", "high"),
    "prompt_tokens": Figure("1", "prompt tokens per success"),
    "output_tokens": Figure("1", "output tokens per success"),
    "most_in_flight": Figure("1", "most in flight"),
    "kv_peak_share": Figure("1", "KV cache used at most"),
    "preemptions": Figure("1", "preemptions"),
}
"""Every column, in the order of the table. Energy is of all boards from the first due time to the last
token, idle included; ``energy_low_j`` and ``energy_high_j`` are of the energy per success."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of n requests: instants (n,) in seconds, NaN where there is none, and tokens (n,).

    ``done_s`` is NaN of what was not served. ``energy_j``: of all boards from the first due time to
    ``end_s``, None where unknown.
    """

    demand_s: Floats
    due_s: Floats
    sent_s: Floats
    first_s: Floats
    done_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    energy_j: float | None
    end_s: float


def figures_of(outcome: Outcome, slo: dict[str, float | None], *, closed: bool) -> dict[str, Any]:
    """The figures that follow from ``outcome``, by name; the others of `FIGURES` are not in it.

    ``slo``: limits in seconds by metric, as in a scenario. Latencies count from sending, those
    ``from_demand`` from when the user asked: shaping's hold is in them. Quantiles are
    linear between order statistics (type 7 of Hyndman and Fan 1996). ``closed``: a closed loop, which has
    no demand times.
    """
    ok, sent = ~np.isnan(outcome.done_s), ~np.isnan(outcome.sent_s)
    n, served = len(ok), int(ok.sum())
    waits = _waits(outcome, closed=closed)
    output = float(outcome.output_tokens[ok].sum())
    found: dict[str, Any] = {
        "requests": n,
        "ok": served,
        "rejected": int((sent & ~ok).sum()),
        "dropped": int((~sent).sum()),
        "duration_s": outcome.end_s,
        "rate_rps": _over(served, outcome.end_s),
        "energy_j": outcome.energy_j,
        "energy_per_success_j": _over(outcome.energy_j, served),
        "energy_per_token_j": _over(outcome.energy_j, output),
        "mean_power_w": _over(outcome.energy_j, outcome.end_s),
        "prompt_tokens": _over(float(outcome.prompt_tokens[ok].sum()), served),
        "output_tokens": _over(output, served),
    }
    span_s = float(outcome.demand_s[-1] - outcome.demand_s[0])
    found["realised_gap_s"] = span_s / (n - 1) if n > 1 and not closed else None
    found["gap_cv"] = describe(np.sort(outcome.due_s)).gap_cv if n > 2 and not closed else None
    for name, seconds in waits.items():
        found |= _spread(name, seconds[ok])
    limits = {key: limit for key, limit in slo.items() if limit is not None}
    if limits:
        good = ok.copy()
        for key, limit in limits.items():
            held = waits[_METRIC[key]] <= limit
            good &= held | (outcome.output_tokens <= 1) if key == "tpot_s" else held
        found["goodput_share"] = int(good.sum()) / n
        found["goodput_rps"] = _over(int(good.sum()), outcome.end_s)
    return found


_METRIC = {
    "ttft_s": "ttft",
    "tpot_s": "tpot",
    "e2e_s": "e2e",
    "ttft_from_due_s": "ttft_from_due",
    "e2e_from_due_s": "e2e_from_due",
}


def _waits(o: Outcome, *, closed: bool) -> dict[str, Floats]:
    demand_s, due_s = (o.sent_s, o.sent_s) if closed else (o.demand_s, o.due_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_token_s = np.where(o.output_tokens > 1, (o.done_s - o.first_s) / (o.output_tokens - 1), np.nan)
    return {
        "ttft": o.first_s - o.sent_s,
        "tpot": per_token_s,
        "e2e": o.done_s - o.sent_s,
        "hold": o.sent_s - demand_s,
        "ttft_from_demand": o.first_s - demand_s,
        "e2e_from_demand": o.done_s - demand_s,
        "ttft_from_due": o.first_s - due_s,
        "e2e_from_due": o.done_s - due_s,
    }


def _spread(name: str, seconds: Floats) -> dict[str, float | None]:
    keys = [f"{name}_{level}_s" for level in ("mean", "p50", "p95", "p99")]
    if keys[0] not in FIGURES:
        return {}
    known = seconds[~np.isnan(seconds)]
    if not len(known):
        return dict.fromkeys(keys)
    values = [float(known.mean()), *np.quantile(known, [0.5, 0.95, 0.99]).tolist()]
    return dict(zip(keys, values, strict=True))


def _over(top: float | None, bottom: float) -> float | None:
    return None if top is None or bottom <= 0 else top / bottom
