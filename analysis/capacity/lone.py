"""Why a replica type cannot keep the SLO at any rate: how its requests fare one by one."""

from __future__ import annotations

import numpy as np

from analysis.capacity.replica import Replica
from analysis.capacity.search import QUICK_N, bound_of
from loadgen.emulation import Served

_APART = 1e-9
"""Of the fluid bound: a rate at which no two requests meet."""


def lone(replica: Replica) -> str:
    """One line: which limits requests break that have the replica to themselves."""
    slo, percentile = replica.slo, replica.slo.percentile
    rate_rps = bound_of(replica).stable_rps * _APART
    served = replica.serve(rate_rps, QUICK_N, 0)
    reasons = []
    refused = int((~served.ok).sum())
    if refused / QUICK_N > 1 - slo.share:
        most = replica.deployment.limits.max_total_tokens
        reasons.append(f"{refused} of {QUICK_N} requests are refused: longer than {most} tokens together")
    if served.ok.any():
        for name, limit_s in slo.limits_s.items():
            value_s = float(np.quantile(_seen_s(served, name), percentile / 100))
            if value_s > limit_s:
                reasons.append(
                    f"alone on it, p{percentile:g} {name.upper()} is {_said(value_s)} > {_said(limit_s)}"
                )
    if not reasons:
        share = replica.fare(rate_rps, QUICK_N, 0).share
        if share < slo.share:
            reasons.append(
                f"alone on it, {share:.1%} of the requests keep all limits at once, {slo.percentile:g} % must"
            )
        else:
            reasons.append("requests alone keep the SLO, but at no rate worth searching")
    return "SLO out of reach: " + "; ".join(reasons)


def _seen_s(served: Served, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}[name][served.ok]
    if name == "tpot":
        values = np.where(np.isnan(values), 0.0, values)
    return values


def _said(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
