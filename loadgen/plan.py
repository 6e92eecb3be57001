"""Scenario x arrival process x shaping x prompts -> the complete plan, before the first byte.

Pure but for reading the files a scenario names. The same scenario and seed give
the same plan, whatever the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.arrivals import Trace, count_within, describe
from loadgen.errors import ConfigError
from loadgen.prompts.jsonl import JsonlSource
from loadgen.prompts.recording import BLOCK_TOKENS, Recording, read_recording
from loadgen.prompts.sharegpt import SharegptSource
from loadgen.prompts.synthetic import SyntheticSource
from loadgen.prompts.trace import TraceSource
from loadgen.scenario import FilePrompts, FixedPrompts, Scenario, SharegptPrompts, TracePrompts
from loadgen.scenario_load import MOST_REQUESTS, ClosedLoad, Load, TraceLoad
from loadgen.seeds import streams
from loadgen.types import Arrival, Floats, Plan, PromptSource, Request


@dataclass(frozen=True)
class Planned:
    """A measured plan, its warm-up, and what the user should know about them.

    ``exact_lengths``: the prompt source knows every reply's length.
    """

    measured: Plan
    warmup: Plan
    notes: tuple[str, ...]
    exact_lengths: bool


def build(scenario: Scenario) -> Planned:
    """The plan of a scenario. Raises ConfigError for a file that does not hold what is needed."""
    rng, load = streams(scenario.seed), scenario.load
    demand_s, replayed, notes = _demand(load, rng.arrivals)
    source = _source(scenario, replayed)
    wanted = len(demand_s) + load.warmup_requests
    requests = list(islice(source.requests(rng.prompts), wanted))
    notes += getattr(source, "notes", [])
    if len(requests) < len(demand_s):
        source_name = getattr(scenario.prompts, "path", None) or "the source"
        raise ConfigError(
            f"prompts: {source_name} has {len(requests)} requests and the load needs {len(demand_s)}; "
            "set prompts.repeat=true or load.requests lower"
        )
    if len(requests) < wanted:
        notes.append("warm-up repeats the first prompts: the source has no others")
    spare = (requests[len(demand_s) :] or requests)[: load.warmup_requests]
    if scenario.prompts.tokenizer is not None:
        count = tokenizer_counter(scenario.prompts.tokenizer)
        requests = [_recounted(request, count) for request in requests]
    due_s = load.shaping.shaper().release(demand_s)
    arrivals = tuple(
        Arrival(due, demand, request)
        for due, demand, request in zip(due_s.tolist(), demand_s.tolist(), requests, strict=False)
    )
    closed = isinstance(load, ClosedLoad)
    measured = Plan(arrivals, load.max_in_flight, load.overflow, scenario.seed, closed)
    return Planned(
        measured,
        _warmup(spare, scenario.seed),
        tuple(notes),
        all("output_tokens" in arrival.request.body for arrival in arrivals),
    )


def _warmup(requests: list[Request], seed: int) -> Plan:
    """One after another, ids from -n up to -1."""
    count = len(requests)
    arrivals = tuple(
        Arrival(0.0, 0.0, dataclasses.replace(request, id=k - count, phase="warmup"))
        for k, request in enumerate(requests)
    )
    return Plan(arrivals, 1, "queue", seed, closed=True)


def demand_times(scenario: Scenario) -> Floats:
    """When the requests are wanted, (n,), seconds: as in `build`, and no prompt is composed."""
    return _demand(scenario.load, streams(scenario.seed).arrivals)[0]


def _demand(load: Load, rng: np.random.Generator) -> tuple[Floats, Recording | None, list[str]]:
    """Demand times; for a trace also what of it is replayed; and notes."""
    if isinstance(load, TraceLoad):
        trace = read_recording(load.path)
        replay = Trace(
            trace.times_s,
            time_scale=load.time_scale,
            thin=load.thin,
            max_requests=load.requests,
            max_duration_s=load.duration_s,
        )
        rows = replay.rows(rng)
        if len(rows) == 0:
            raise ConfigError(f"load: nothing of {load.path} is left after thin and duration_s")
        times_s = replay.at(rows)
        notes = list(trace.notes)
        if len(rows) < len(trace.times_s):
            notes.append(f"trace: replaying {len(rows)} of {len(trace.times_s)} requests of {load.path.name}")
        if load.time_scale != 1:
            notes.append(f"trace: time scaled by {load.time_scale:g}")
        together = int(np.count_nonzero(np.diff(times_s) == 0))
        if 2 * together > len(times_s):
            notes.append(
                f"trace: {together} of {len(times_s) - 1} gaps are 0 s: the file's clock is coarse, "
                "and what it counts as one instant is sent as a burst"
            )
        return times_s, trace.take(rows), notes
    process = load.process()
    if load.requests is None or load.duration_s is not None:
        duration_s = load.duration_s if load.duration_s is not None else float("inf")
        limit = load.requests or MOST_REQUESTS + 1
        times_s = count_within(process, duration_s, rng, limit=limit)
        if len(times_s) > MOST_REQUESTS:
            raise ConfigError(f"load: more than {MOST_REQUESTS:,} requests in {duration_s:g} s")
        if len(times_s) == 0:
            raise ConfigError(f"load: no request falls into {duration_s:g} s")
        return times_s, None, []
    return process.times(load.requests, rng), None, []


def _source(scenario: Scenario, replayed: Recording | None) -> PromptSource:
    prompts = scenario.prompts
    if isinstance(prompts, TracePrompts):
        if prompts.path is not None:
            trace = read_recording(prompts.path)
            notes = [*trace.notes]
        else:
            assert replayed is not None  # Scenario refuses a trace source without any path
            trace, notes = replayed, []
        if trace.repeated_share is not None:
            notes.append(
                f"trace: {100 * trace.repeated_share:.1f} % of the prompt tokens stand in whole blocks of "
                f"{BLOCK_TOKENS} that an earlier prompt began with; the composed prompts share them"
            )
        return TraceSource(
            trace.context_tokens,
            trace.generated_tokens,
            repeat=prompts.repeat or prompts.path is None,
            blocks=trace.blocks,
            notes=tuple(notes),
        )
    if isinstance(prompts, FixedPrompts):
        lengths = np.array([prompts.prompt_tokens]), np.array([prompts.output_tokens])
        return TraceSource(*lengths, repeat=True)
    if isinstance(prompts, SharegptPrompts):
        return SharegptSource(
            prompts.path,
            turns=prompts.turns,
            max_new_tokens=prompts.max_new_tokens,
            repeat=prompts.repeat,
            shuffle=prompts.shuffle,
        )
    if isinstance(prompts, FilePrompts):
        return JsonlSource(
            prompts.path,
            max_new_tokens=prompts.max_new_tokens,
            repeat=prompts.repeat,
            shuffle=prompts.shuffle,
        )
    return SyntheticSource(max_new_tokens=prompts.max_new_tokens)


def tokenizer_counter(path: Path) -> Callable[[str], int]:
    """Counts tokens with a Hugging Face ``tokenizer.json`` (plain or .gz).

    Raises ConfigError when the ``tokenizers`` extra is missing or the file is none.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(
            "prompts.tokenizer: expected the tokenizers package; pip install 'loadgen[tokenizer]'"
        ) from None
    import gzip

    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        tokenizer = Tokenizer.from_str(text)
    except Exception as exc:  # tokenizers raises bare Exception for a bad file
        raise ConfigError(f"prompts.tokenizer: {path}: expected a tokenizer.json: {exc}") from exc
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _recounted(request: Request, count: Callable[[str], int]) -> Request:
    body = dict(request.body)
    texts = [body["prompt"]] if "prompt" in body else [m["content"] for m in body["messages"]]
    body["prompt_tokens"] = sum(count(text) for text in texts)
    return dataclasses.replace(request, body=body)


def describe_plan(scenario: Scenario, planned: Planned) -> dict[str, Any]:
    """What a plan will send, JSON-ready: counts, span, rate, CV, dispersion, lag-1, token lengths."""
    arrivals = planned.measured.arrivals
    due_s = np.array([a.due_s for a in arrivals])
    demand_s = np.array([a.demand_s for a in arrivals])
    facts: dict[str, Any] = {
        "name": scenario.name,
        "seed": scenario.seed,
        "pattern": getattr(scenario.load, "pattern", None),
        "requests": len(arrivals),
        "warmup_requests": len(planned.warmup.arrivals),
        "max_in_flight": planned.measured.max_in_flight,
        "overflow": planned.measured.overflow,
        "timeout_s": scenario.load.timeout_s,
        "closed_loop": planned.measured.closed,
        "arrivals": None if planned.measured.closed else dataclasses.asdict(describe(due_s)),
        "hold_mean_s": float(np.mean(due_s - demand_s)),
        "prompt_tokens": _spread([a.request.body.get("prompt_tokens") for a in arrivals]),
        "output_tokens": _spread([a.request.body.get("output_tokens") for a in arrivals]),
        "max_new_tokens": _spread([a.request.body.get("max_new_tokens") for a in arrivals]),
        "exact_lengths": planned.exact_lengths,
        "target": scenario.server.url or "embedded",
        "notes": list(planned.notes),
    }
    if not planned.measured.closed and np.any(due_s != demand_s):
        facts["demand"] = dataclasses.asdict(describe(demand_s))
    return facts


def _spread(values: list[int | None]) -> dict[str, float] | None:
    """min, mean, std, p50, p95, max of known lengths; None when none is known."""
    known = np.array([v for v in values if v is not None], dtype=float)
    if not len(known):
        return None
    p50, p95 = np.quantile(known, [0.5, 0.95])
    return {
        "n": len(known),
        "min": float(known.min()),
        "mean": float(known.mean()),
        "std": float(known.std()),
        "p50": float(p50),
        "p95": float(p95),
        "max": float(known.max()),
    }


def plan_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The plan's facts as (label, value) pairs for people."""

    def number(value: float | None, unit: str = "") -> str:
        return "n/a" if value is None else f"{value:,.4g}{unit}"

    yield "scenario", f"{facts['name']} (seed {facts['seed']}) -> {facts['target']}"
    cap = (
        f", at most {facts['max_in_flight']} in flight ({facts['overflow']})"
        if facts["max_in_flight"]
        else ""
    )
    yield "requests", f"{facts['requests']:,} + {facts['warmup_requests']} warm-up, {facts['pattern']}{cap}"
    shape = facts["arrivals"]
    if shape is None:
        yield "duration", "set by the server: closed loop"
    else:
        yield "duration", number(shape["duration_s"], " s from the first to the last due time")
        yield "realised rate", number(shape["rate_rps"], " requests/s")
        yield "gap CV", number(shape["gap_cv"]) + "  (0 constant, 1 Poisson)"
        yield "dispersion", number(shape["dispersion"]) + "  (variance/mean of 1 s counts; 1 Poisson)"
        yield "lag-1 autocorr.", number(shape["lag1"]) + "  (of gaps; 0 renewal)"
    if facts["hold_mean_s"]:
        yield "held by shaping", number(facts["hold_mean_s"], " s on average")
    for key, label in (("prompt_tokens", "prompt tokens"), ("output_tokens", "reply tokens")):
        spread = facts[key]
        if spread is None:
            reason = (
                "unknown before the run"
                if key == "prompt_tokens"
                else (f"decided by the server, at most {number((facts['max_new_tokens'] or {}).get('max'))}")
            )
            yield label, reason
        else:
            yield (
                label,
                (
                    f"mean {spread['mean']:,.0f} ± {spread['std']:,.0f} (std), p50 {spread['p50']:,.0f}, "
                    f"p95 {spread['p95']:,.0f}, {spread['min']:,.0f} to {spread['max']:,.0f}"
                ),
            )
    yield "timeout", number(facts["timeout_s"], " s from sending")
    for note in facts["notes"]:
        yield "note", note
