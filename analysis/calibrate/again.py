"""A run's load served once more by the emulator: the same requests, due times and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pydantic import ValidationError

from analysis.calibrate.rebuild import planned_of, scenario_of
from analysis.calibrate.subject import Subject, subject_of
from analysis.run import Run
from loadgen.config import Place, Tree, explain, parse_value
from loadgen.emulation import Jobs, Served, jobs_of, simulate
from loadgen.emulation.jobs import Lengths
from loadgen.errors import ConfigError, LoadgenError
from loadgen.launch import Hardware, Launch, Launcher
from loadgen.physics.models import MODELS
from loadgen.section import Section
from loadgen.server.deployment import Deployment
from loadgen.types import Overflow


@dataclass(frozen=True, slots=True)
class Again:
    """What the emulator made of a run's successful requests, in the order of ``ids``, (n,).

    ``left_out``: requests of the run that did not succeed and are not in it.
    """

    served: Served
    deployment: Deployment
    ids: pd.Index[int]
    left_out: int


def serve_again(
    run: Run,
    *,
    gpu: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    settings: Sequence[str] = (),
) -> Again:
    """Serves the run's load on the emulator of the board ``gpu``, else of the one it names.

    ``settings``: ``launcher.KEY=VALUE`` of what a real server does not tell, as its slots. Raises
    ConfigError when model, board or number format is not known, CapacityError when they do not fit.
    """
    subject = subject_of(run, gpu=gpu, model=model, dtype=dtype)
    launch = _launch(run, subject, model, settings)
    deployment = Deployment(launch, subject.base)
    rows, left_out = _requests(run)
    served = simulate(deployment, _jobs(run, rows, launch))
    return Again(served, deployment, pd.Index(rows["id"]), left_out)


def _launch(run: Run, subject: Subject, model: str | None, settings: Sequence[str]) -> Launch:
    manifest = run.manifest
    facts = manifest.get("server") or {}
    server = scenario_of(run).server
    launch = replace(
        server.launch(int(manifest.get("seed") or 0)),
        model=subject.model.id if subject.model.id in MODELS else str(model or facts.get("model")),
        gpu=subject.gpu,
        dtype=subject.dtype.name,
        hardware=_own_board(server.hardware),
    )
    if not subject.embedded:
        limits = facts.get("limits") or {}
        told = {
            "max_batch_prefill_tokens": limits.get("max_batch_prefill_tokens"),
            "max_batch_size": limits.get("max_batch_size"),
        }
        known = {key: value for key, value in told.items() if value and getattr(launch.launcher, key) is None}
        launch = replace(
            launch,
            scheduler="tgi" if subject.scheduler == "tgi" else "vllm",
            launcher=launch.launcher.model_copy(update=known),
            max_concurrent_requests=int(limits.get("max_concurrent_requests") or 1_000_000),
        )
    return replace(launch, launcher=_with_settings(launch.launcher, settings))


def _own_board(hardware: Hardware) -> Hardware:
    """The typical board: what made the run's own differ stands in the profile."""
    return hardware.model_copy(update={"board_seed": None, "sensor_gain": 1.0, "draw": None})


def _with_settings(launcher: Launcher, settings: Sequence[str]) -> Launcher:
    """Raises ConfigError in one line for a key or value that the launcher does not take."""
    tree = Tree({"launcher": launcher.model_dump(mode="json")})
    for pair in settings:
        key, equals, text = pair.partition("=")
        if not equals or not key.startswith("launcher."):
            raise ConfigError(
                f"--set: expected launcher.KEY=VALUE such as launcher.max_num_seqs=8, got {pair!r}"
            )
        tree.assign(key, parse_value(text, f"--set {key}"), "--set")
    try:
        return _Settings.model_validate(tree.data).launcher
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), tree, _keys_at, frozenset())
        raise ConfigError("\n".join(lines)) from None


class _Settings(Section):
    launcher: Launcher


def _keys_at(place: Place) -> dict[str, str]:
    return dict.fromkeys(Launcher.model_fields if place else _Settings.model_fields, "a value")


def _requests(run: Run) -> tuple[pd.DataFrame, int]:
    """The successful requests whose lengths are known, with their times in the plan, by due time.

    Not those of several records: which of them was served is not known.
    """
    once = run.ok[~run.ok["id"].duplicated(keep=False)]
    ok = once[["id", "prompt_tokens", "output_tokens"]].dropna()
    plan = run.timetable.drop_duplicates("id")
    plan = plan[plan["phase"] != "warmup"][["id", "due_s", "demand_s"]]
    rows = ok.merge(plan, on="id", how="inner") if len(plan) else ok.assign(due_s=np.nan, demand_s=np.nan)
    if not len(rows):
        raise ConfigError(f"{run.path.name}: none of its requests succeeded with counts of its tokens")
    order = (
        plan["id"].tolist() if run.closed_loop else rows.sort_values("due_s", kind="stable")["id"].tolist()
    )
    place = {number: k for k, number in enumerate(order)}
    rows = rows.assign(place=rows["id"].map(place)).sort_values("place", kind="stable")
    return rows.reset_index(drop=True), len(run.requests) - len(rows)


def _jobs(run: Run, rows: pd.DataFrame, launch: Launch) -> Jobs:
    load = scenario_of(run).load
    n = len(rows)
    due_s, demand_s = (
        np.zeros(n) if run.closed_loop else rows[name].to_numpy(dtype=np.float64)
        for name in ("due_s", "demand_s")
    )
    if np.any(np.isnan(due_s)):
        raise ConfigError(f"{run.path.name}: plan.jsonl has no due times for its requests")
    zero_s = min(0.0, float(demand_s.min()))
    prompt, reply = (
        np.maximum(rows[name].to_numpy(dtype=np.float64), 1.0).astype(np.int64)
        for name in ("prompt_tokens", "output_tokens")
    )
    lengths = Lengths(prompt, reply, reply, _prompt_ids(run, rows, launch))
    overflow: Overflow = load.overflow
    return Jobs(demand_s - zero_s, due_s - zero_s, lengths, load.max_in_flight, overflow, run.closed_loop)


def _prompt_ids(run: Run, rows: pd.DataFrame, launch: Launch) -> tuple[bytes, ...] | None:
    """The prompts for the prefix cache of an embedded server; a real one's are not told."""
    if (run.manifest.get("server") or {}).get("kind") != "embedded" or not launch.launcher.prefix_caching:
        return None
    try:
        planned = planned_of(run)
        jobs = jobs_of(planned.measured, exact_lengths=planned.exact_lengths, shared_prefixes=True)
    except (LoadgenError, OSError):
        return None
    assert jobs.lengths.prompt_ids is not None
    ids = [arrival.request.id for arrival in planned.measured.arrivals]
    of = dict(zip(ids, jobs.lengths.prompt_ids, strict=True))
    return tuple(of[int(number)] for number in rows["id"])
