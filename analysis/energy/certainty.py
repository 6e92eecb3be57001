"""Least and most joules that a window can have cost by one series, or why they are not known.

Only a counter tells, since energy never decreases (`analysis.energy.integral.certain_j`), and
only as well as the clock of the host that read it is known. Power says nothing of what
was between its readings, an estimate nothing at all.
"""

from __future__ import annotations

from analysis.energy import integral
from analysis.energy.publication import PASSED_ON_S
from analysis.run import Run, Series


def within(
    run: Run, series: Series, start_s: float, end_s: float, *, clock: bool = True
) -> tuple[tuple[float, float] | None, str | None]:
    """(least, most) joules of [start, end] and None, or None and the reason. ``clock``: with its bound."""
    domain = series.domain
    if domain.method == "estimated":
        return None, f"{domain.name} is an estimate"
    if not series.cumulative:
        return None, f"{domain.name} is power: what it did between or within readings is not bounded"
    if domain.update_s is not None and domain.update_s >= PASSED_ON_S:
        slow = f"{domain.name} is renewed every {domain.update_s:.3g} s"
        return None, f"{slow}, by a program that passes it on: how old a new value is, is not known"
    clock_s, why = clock_bound_s(run, domain.name)
    if why is not None:
        return None, why
    t_s, value = integral.in_order(series.t_s, series.value)
    within_j = integral.certain_j(t_s, value, start_s, end_s, clock_s=clock_s if clock else 0.0)
    if within_j is None:
        return None, f"{domain.name} shows no value from before the window, or no new one after it"
    return within_j, None


def clock_bound_s(run: Run, domain: str) -> tuple[float, str | None]:
    """How far off the clock of a domain's sidecar may be; 0 for what this host read itself."""
    for row in run.manifest.get("sidecars") or ():
        if domain in (row.get("domains") or ()):
            bound_s = (row.get("clock") or {}).get("bound_s")
            if bound_s is None:
                who = row.get("name") or row.get("url")
                return 0.0, f"the clock of the sidecar {who} was not compared at both ends"
            return float(bound_s), None
    return 0.0, None
