"""The plan of a run again, from what its manifest resolved: prompts and all, where its files still exist."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from pydantic import ValidationError

from analysis.run import Run
from loadgen.emulation import jobs_of, simulate
from loadgen.errors import ConfigError, LoadgenError
from loadgen.launch import Launch
from loadgen.physics.profile import Profile
from loadgen.plan import Planned, build
from loadgen.scenario import Scenario
from loadgen.server.deployment import Deployment


def scenario_of(run: Run) -> Scenario:
    """The scenario as run.json has it. Raises ConfigError when this version cannot read it."""
    try:
        return Scenario.model_validate_json(json.dumps(run.manifest.get("scenario")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{run.path}/run.json: scenario.{place}: {first['msg']}") from None


def planned_of(run: Run) -> Planned:
    """The plan, prompts included. Raises ConfigError when files are gone or it is not what was sent."""
    planned = build(scenario_of(run))
    rows = run.timetable
    rows = rows[rows["phase"] != "warmup"]
    told = {a.request.id: a.request.body.get("prompt_tokens") for a in planned.measured.arrivals}
    if len(rows) and told != {
        int(i): _whole(n) for i, n in zip(rows["id"], rows["prompt_tokens"], strict=True)
    }:
        raise ConfigError(f"{run.path.name}: its scenario gives other prompts now than those in plan.jsonl")
    return planned


def _whole(value: float | None) -> int | None:
    return None if value is None or np.isnan(value) else int(value)


def cached_tokens(run: Run, launch: Launch, profile: Profile) -> pd.Series[float] | None:
    """Prompt tokens that the prefix cache had of each measured request, by id; None where nobody can tell.

    Only of an embedded server, whose cache is known: the plan is served again on the emulator.
    """
    try:
        planned = planned_of(run)
        jobs = jobs_of(planned.measured, exact_lengths=planned.exact_lengths, shared_prefixes=True)
        served = simulate(Deployment(launch, profile), jobs)
    except (LoadgenError, OSError):
        return None
    ids = [arrival.request.id for arrival in planned.measured.arrivals]
    return pd.Series(served.cached_tokens.astype(np.float64), index=ids)
