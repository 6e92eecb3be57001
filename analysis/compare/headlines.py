"""The figures that are compared: their names, units, where each stands in a summary, what to call it.

Names are those of ``--fail-if``. ``idle_share_j`` and ``active_share_j`` divide the energy per success into
what the idle boards cost in the meantime, P_idle x window / successes, hence P_idle / rate, and
what the work added to it. Idle power counts as known: it is one reading of a baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis import stats
from analysis.energy import Label
from analysis.stats import Blocks
from analysis.summary import Facts
from loadgen.types import Estimate, Floats

Kind = Literal["gpu", "cpu", "ram", "latency", "throughput"]
Word = Literal["measured", "estimated", "simulated", "unavailable"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One headline. ``path``: keys down to it in a summary. ``tested``: whether Holm's rule counts it."""

    name: str
    title: str
    unit: str
    kind: Kind
    path: tuple[str, ...] = ()
    tested: bool = True


def _energies(part: Literal["gpu", "cpu", "ram"]) -> tuple[Figure, ...]:
    prefix = "" if part == "gpu" else f"{part}_"
    word = part.upper()
    found = [
        Figure(f"{prefix}{key}_j", f"{word} energy {title}", "J", part, ("energy", part, key))
        for key, title in (
            ("energy_per_request", "per success"),
            ("energy_per_output_token", "per output token"),
            ("energy_per_attempt", "per attempt"),
        )
    ]
    found.append(
        Figure(f"{prefix}mean_power_w", f"{word} mean power", "W", part, ("energy", part, "mean_power_w"))
    )
    found.append(Figure(f"{prefix}total_j", f"{word} energy, total", "J", part, ("energy", part, "total_j")))
    return tuple(found)


IDLE = Figure("idle_share_j", "  of it idle (P_idle / rate)", "J", "gpu", tested=False)
ACTIVE = Figure("active_share_j", "  of it active (marginal)", "J", "gpu", tested=False)


def _latency(name: str, title: str) -> Figure:
    statistic, _, metric = name.partition("_")
    return Figure(name, title, "s", "latency", ("latency", f"{metric}_s", statistic))


_GPU = _energies("gpu")
FIGURES: tuple[Figure, ...] = (
    _GPU[0],
    IDLE,
    ACTIVE,
    *_GPU[1:],
    *_energies("cpu"),
    *_energies("ram"),
    _latency("mean_ttft", "TTFT mean"),
    _latency("p50_ttft", "TTFT p50"),
    _latency("p99_ttft", "TTFT p99"),
    _latency("p50_tpot", "TPOT p50"),
    _latency("p50_e2e", "E2E p50"),
    _latency("p99_e2e", "E2E p99"),
    _latency("p50_e2e_from_demand", "E2E p50 from demand"),
    _latency("p99_e2e_from_demand", "E2E p99 from demand"),
    Figure("achieved_rps", "successes per second", "1/s", "throughput", ("rate", "achieved_rps")),
    Figure(
        "output_tokens_per_s",
        "output tokens per second",
        "1/s",
        "throughput",
        ("tokens", "output_tokens_per_s"),
    ),
    Figure("success_ratio", "success ratio", "1", "throughput", ("requests", "success_ratio")),
    Figure("goodput_ratio", "goodput, share of requests", "1", "throughput", ("goodput", "ratio")),
    Figure("goodput_rps", "goodput per second", "1/s", "throughput", ("goodput", "rps")),
)


def value_of(figure: Figure, facts: Facts) -> Estimate:
    """The headline of one run, with its sampling interval, or the reason why there is none."""
    if figure in (IDLE, ACTIVE):
        return _share(figure, facts)
    here: Any = facts.summary
    for key in figure.path:
        here = here.get(key) if isinstance(here, Mapping) else None
    if here is None:
        return stats.missing(figure.unit, _why(figure, facts))
    return Estimate(**here)


def label_of(figure: Figure, facts: Facts) -> Word:
    """What kind of figure it is: of an energy, its part's; else by who served, or what clock ran."""
    if figure.kind in ("gpu", "cpu", "ram"):
        label: Label | None = facts.parts[figure.kind].label if figure.kind in facts.parts else None
        return label or "unavailable"
    embedded = (facts.run.manifest.get("server") or {}).get("kind") == "embedded"
    return "simulated" if embedded or facts.run.virtual else "measured"


def per_block(facts: Facts, figure: Figure) -> tuple[Floats, Floats, Blocks] | None:
    """Joules and successes of each time block, and the blocks, of the two shares; None without an energy.

    Where the sensor is too slow for blocks, the window is one.
    """
    part = facts.parts.get("gpu")
    if part is None or part.total_j is None or part.static_j is None or part.idle_power_w is None:
        return None
    blocks, due_s = facts.blocks, facts.run.ok["due_s"].to_numpy(dtype=np.float64)
    joules, successes = part.block_j, blocks.counts(blocks.index(due_s))
    if joules is None:
        blocks = Blocks(blocks.edges_s[[0, -1]], None, blocks.level, part.block_reason)
        joules, successes = np.array([part.total_j]), successes.sum(keepdims=True)
    idle_j = part.idle_power_w * np.diff(blocks.edges_s)
    return (idle_j if figure is IDLE else joules - idle_j), successes, blocks


def _share(figure: Figure, facts: Facts) -> Estimate:
    found = per_block(facts, figure)
    if found is None:
        part = facts.parts.get("gpu")
        why = part.reason if part is not None else "no request ended, so there is no window"
        return stats.missing("J", why or "no idle stretch was read before or after the load")
    joules, successes, blocks = found
    what = "idle power x window" if figure is IDLE else "(energy - idle power x window)"
    return stats.ratio(joules, successes, blocks, "J", int(successes.sum()), f"{what} / successful requests")


def _why(figure: Figure, facts: Facts) -> str:
    if figure.kind in ("gpu", "cpu", "ram"):
        part = facts.parts.get(figure.kind)
        return (part.reason if part is not None else None) or "no request ended, so there is no window"
    return "the scenario has no slo" if figure.name.startswith("goodput") else "the summary has none"
