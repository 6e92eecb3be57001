"""One point of a sweep simulated: its scenario as jobs, served, as one row of figures.

Points of one seed have the same prompts and replies and, whatever gap they are scaled to, the same
arrivals but for the scale (common random numbers): what differs between two of them is their keys.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.emulation.jobs import Jobs, Lengths, constant_lengths, lengths_of
from loadgen.emulation.replica import simulate
from loadgen.emulation.works import power_draws, redrawn_j
from loadgen.errors import CapacityError, ConfigError
from loadgen.experiment import Order, execute_unseen
from loadgen.physics.hardware import Gpu
from loadgen.physics.transformer import StepModel
from loadgen.physics.uncertainty import range_of_draws
from loadgen.plan import Planned, build, demand_times
from loadgen.prompts.tokens import count_tokens
from loadgen.scenario import FixedPrompts, Scenario, TracePrompts
from loadgen.scenario_load import ClosedLoad
from loadgen.server.deployment import Deployment
from loadgen.sweep.figures import Outcome, figures_of
from loadgen.sweep.sweep_file import Point
from loadgen.types import Floats

Row = dict[str, Any]
"""``point``, ``axes`` (levels by key), ``figures`` (by name), ``refused`` (why there are none, or None),
``draws_j`` (energy per success under each draw of the power constants, or None)."""
Measure = Callable[[Path], Mapping[str, Any]]
"""The figures of a run directory, by name: what ``--http`` is measured with. A module's function."""

_DIGITS = 7
_MOST_CACHED = 200_000
"""Requests whose lengths are kept, about 50 MB with the token ids of prompts."""


def row_of(point: Point, *, draws: int, measure: Measure | None = None) -> Row:
    """One point's row. ``measure``: take the whole path, HTTP and power sampling, in virtual time.

    A point whose model does not fit is a row without figures that says why.
    """
    row: Row = {"point": point.number, "axes": dict(point.levels)}
    row |= {"figures": {}, "refused": None, "draws_j": None}
    try:
        if measure is not None:
            return row | {"figures": _whole_path(point, measure)}
        figures, draws_j = _direct(point, draws)
        return row | {"figures": figures, "draws_j": draws_j}
    except CapacityError as exc:
        return row | {"refused": str(exc)}


def scaled(demand_s: Floats, mean_gap_s: float | None) -> Floats:
    """The same arrivals from 0 on, stretched so that their mean gap is exactly ``mean_gap_s``."""
    if mean_gap_s is None:
        return demand_s
    since_s = demand_s - demand_s[0]
    if len(since_s) < 2 or since_s[-1] <= 0:
        raise ConfigError(f"mean_gap_s: expected arrivals with gaps, got {len(since_s)} at one instant")
    return np.asarray(since_s * (mean_gap_s * (len(since_s) - 1) / since_s[-1]), dtype=np.float64)


def jobs_of(point: Point) -> Jobs:
    """A point's requests: when each comes, after shaping, and how long it is."""
    scenario, load = point.scenario, point.scenario.load
    demand_s = scaled(demand_times(scenario), point.mean_gap_s)
    lengths = _LENGTHS.of(scenario, len(demand_s))
    closed = isinstance(load, ClosedLoad)
    due_s = load.shaping.shaper().release(demand_s)
    return Jobs(demand_s, due_s, lengths, load.max_in_flight, load.overflow, closed)


class _Lengths:
    """Lengths by prompts and seed: points that ask for the same get the same, composed once a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Lengths] = OrderedDict()

    def of(self, scenario: Scenario, n: int) -> Lengths:
        prompts = scenario.prompts
        if isinstance(prompts, FixedPrompts):
            return constant_lengths(n, _composed_tokens(prompts), prompts.output_tokens)
        shared = scenario.server.launcher.prefix_caching
        key = f"{scenario.seed} {shared} {prompts.model_dump_json()}"
        if isinstance(prompts, TracePrompts):  # which rows: those of the load
            key += scenario.load.model_dump_json()
        kept = self._kept.pop(key, None)
        if kept is None or len(kept) < n:
            planned = build(scenario)
            requests = [arrival.request for arrival in planned.measured.arrivals]
            kept = lengths_of(requests, scenario.seed, exact=planned.exact_lengths, shared_prefixes=shared)
        self._kept[key] = kept
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > _MOST_CACHED:
            self._kept.popitem(last=False)
        return kept.head(n)


@cache
def _composed_tokens(prompts: FixedPrompts) -> int:
    """Tokens of the prompts that are composed to this length: it, but for rounding."""
    load = {"pattern": "all_at_once", "requests": 1}
    alone = Scenario.model_validate({"name": "one", "load": load, "prompts": prompts})
    return count_tokens(build(alone).measured.arrivals[0].request.body["prompt"])


_LENGTHS = _Lengths()


def _direct(point: Point, draws: int) -> tuple[dict[str, Any], list[float] | None]:
    scenario = point.scenario
    deployment = Deployment(scenario.server.launch(scenario.seed))
    jobs = jobs_of(point)
    record = draws > 0 and isinstance(deployment.step_model, StepModel)
    served = simulate(deployment, jobs, record=record)
    outcome = Outcome(
        jobs.demand_s,
        jobs.due_s,
        served.sent_s,
        served.first_s,
        served.done_s,
        jobs.lengths.prompt_tokens.astype(np.float64),
        jobs.lengths.reply_tokens.astype(np.float64),
        served.energy_j,
        served.end_s,
    )
    figures = figures_of(outcome, _slo(scenario), closed=jobs.closed)
    figures |= {
        "busy_share": served.busy_s / served.end_s if served.end_s else None,
        "most_in_flight": served.most_in_flight,
        "kv_peak_share": served.kv_peak_blocks / served.kv_blocks,
        "preemptions": served.preemptions,
    }
    n = figures["ok"]
    if not (record and n):
        return figures, None
    shards = deployment.launch.launcher.num_shard
    draws_j = redrawn_j(served, deployment.gpu, shards, _drawn(deployment.gpu, draws)) / n
    low_j, high_j = range_of_draws(draws_j)
    figures |= {"energy_low_j": low_j, "energy_high_j": high_j}
    return figures, [float(f"{x:.{_DIGITS}g}") for x in draws_j.tolist()]


def _drawn(gpu: Gpu, draws: int) -> list[Gpu]:
    """The same at every point of a board, so that ratios of points can be drawn too."""
    board, drawn = _DRAWN.get((gpu.id, draws), (None, []))
    if board != gpu:
        drawn = power_draws(gpu, draws, seed=0)
        _DRAWN[gpu.id, draws] = gpu, drawn
    return drawn


_DRAWN: dict[tuple[str, int], tuple[Gpu, list[Gpu]]] = {}
"""The last board of each id and its draws: they take as long as a simulation."""


def _slo(scenario: Scenario) -> dict[str, float | None]:
    return {} if scenario.slo is None else scenario.slo.model_dump()


def planned_of(point: Point) -> Planned:
    """A point's complete plan, its arrivals scaled as the direct path's."""
    planned = build(point.scenario)
    if point.mean_gap_s is None:
        return planned
    arrivals = planned.measured.arrivals
    demand_s = scaled(np.array([arrival.demand_s for arrival in arrivals]), point.mean_gap_s)
    due_s = point.scenario.load.shaping.shaper().release(demand_s)
    moved = tuple(
        dataclasses.replace(arrival, demand_s=demand, due_s=due)
        for arrival, demand, due in zip(arrivals, demand_s.tolist(), due_s.tolist(), strict=True)
    )
    return dataclasses.replace(planned, measured=dataclasses.replace(planned.measured, arrivals=moved))


def _whole_path(point: Point, measure: Measure) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="loadgen-sweep-") as scratch:
        order = Order(point.scenario, "", planned_of(point), Path(scratch))
        return dict(measure(execute_unseen(order)))
