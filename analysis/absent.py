"""Which figures of a summary have a value but no interval, and why, in sentences for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.latency import QUANTILES
from analysis.stats import reason_of, requests_needed

_FIGURES = (
    "ttft",
    "ttft_from_due",
    "ttft_from_demand",
    "tpot",
    "itl",
    "e2e",
    "e2e_from_due",
    "e2e_from_demand",
)
_ENERGIES = {
    "mean_power_w": "power",
    "energy_per_attempt": "energy per attempt",
    "energy_per_request": "energy per success",
    "energy_per_output_token": "energy per output token",
}


def without_intervals(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for what a longer run would have intervals of, and one for each other reason."""
    reason = summary["blocks"]["reason"]
    if reason is not None:
        return [f"No 95 % intervals: {reason}."]
    longer: dict[str, list[str]] = {}
    needed = 0
    otherwise: dict[str, list[str]] = {}
    for figure, statistic, method in _lacking(summary):
        requests = requests_needed(method)
        if requests is None:
            kept = otherwise.setdefault(reason_of(method), [])
            kept.append(f"{figure} {statistic}".strip())
        else:
            longer.setdefault(figure, []).append(statistic)
            needed = max(needed, requests)
    said = [f"No 95 % interval for {', '.join(figures)}: {why}." for why, figures in otherwise.items()]
    if longer:
        names = ", ".join(" ".join([figure, *filter(None, found)]) for figure, found in longer.items())
        said.append(
            f"No 95 % interval for {names}: this run is too short, since few values lie there or requests "
            f"near each other fare alike. It takes at least about {needed:,} requests at this load."
        )
    return said


def _lacking(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Figure, statistic and method of every estimate shown that has a value and no interval."""
    base: Mapping[str, Any] = {}
    for figure in _FIGURES:
        row = summary["latency"][f"{figure}_s"]
        if "_from_" not in figure:
            base = row
        elif row["p99"] == base["p99"]:
            continue
        for statistic in ("mean", *QUANTILES):
            if _lacks(row[statistic]):
                yield figure.replace("_", " "), statistic, row[statistic]["method"]
    if summary["goodput"] is not None and _lacks(summary["goodput"]["ratio"]):
        yield "goodput", "", summary["goodput"]["ratio"]["method"]
    for part in ("gpu", "cpu", "ram"):
        for key, name in _ENERGIES.items():
            found = summary["energy"].get(part)
            if found is not None and _lacks(found[key]):
                yield f"{part.upper()} {name}", "", found[key]["method"]


def _lacks(estimate: Mapping[str, Any]) -> bool:
    return estimate["value"] is not None and estimate["low"] is None
