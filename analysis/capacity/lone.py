"""Why a replica type cannot keep the SLO at any rate: how its requests fare one by one."""

from __future__ import annotations

import numpy as np

from analysis.capacity.replica import Replica, judge, whole
from analysis.capacity.search import QUICK_N, bound_of
from loadgen.emulation import Served, simulate

_APART_S = 1e5
"""Between two requests that are not to meet."""


def lone(replica: Replica) -> str:
    """One line: which limits requests break that have the replica to themselves."""
    slo, percentile = replica.slo, replica.slo.percentile
    jobs = replica.workload.jobs(bound_of(replica).stable_rps, QUICK_N, 0)
    served = simulate(replica.deployment, jobs.at(np.arange(QUICK_N, dtype=np.float64) * _APART_S))
    reasons = []
    most = replica.deployment.limits.max_total_tokens
    refused = int((~whole(served, most)).sum())
    if refused / QUICK_N > 1 - slo.share:
        reasons.append(
            f"{refused:,} of {QUICK_N:,} requests are refused or cut short: "
            f"longer than {most:,} tokens together"
        )
    if served.ok.any():
        for name, limit_s in slo.limits_s.items():
            value_s = float(np.quantile(_seen_s(served, name), percentile / 100))
            if value_s > limit_s:
                reasons.append(
                    f"alone on it, p{percentile:g} {name.upper()} is {_said(value_s)} > {_said(limit_s)}"
                )
    if not reasons:
        share = judge(served, slo, 1 / _APART_S, most).share
        if share < slo.share:
            reasons.append(
                f"alone on it, {share:.1%} of the requests keep all limits at once, {slo.percentile:g} % must"
            )
        else:
            reasons.append(
                f"alone on it, {share:.2%} of the requests keep it, too close to the {slo.percentile:g} % "
                "wanted for any rate to be sure"
            )
    return "SLO out of reach: " + "; ".join(reasons)


def _seen_s(served: Served, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}[name][served.ok]
    if name == "tpot":
        values = np.where(np.isnan(values), 0.0, values)
    return values


def _said(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
