"""A run's findings put together: what `loadgen analyze` shows, a report prints and a notebook uses.

    from analysis.study import Options, study, write

    found = study(analysis.load("runs/..."), Options(window="steady"))
    found.spent                 # joules of the window: idle, prefill, decode, failed, warm-up, unattributed
    found.per_success["total_j"]["p95"]
    write(found)                # RUN/report/findings.json

Keys of `as_object`, and so of ``findings.json`` (an *estimate* is an object with the fields of
`loadgen.types.Estimate`; what is not known is null, with its reason beside it or in ``method``;
instants are in run time):

- ``schema``: 1; ``options``: ``method``, ``window``, ``slice_s``, ``weights``, as asked for; ``notes``: what
  to know of them; ``summary``: `analysis.summary.summarize`; ``uncertainty``:
  uncertainty.json, or null
- ``rules``: of the verdict, each with the fields of `analysis.lint.Rule`
- ``steady``: ``start_s``, ``end_s``, ``rule``, ``reason``; ``window``: ``start_s``, ``end_s``, ``asked``,
  ``sentence``, or null
- ``attribution``: ``method``, ``weights`` (where they are from), ``idle_from``, ``idle_w``, ``fit``
  (null: nothing was corrected), ``reason``, ``spent`` (fields of `analysis.study.costs.Spent`) and
  ``per_success`` (by part, by statistic: estimates)
- ``hosts``: by ``cpu``, ``ram``: ``reason`` and ``spent``, by time share
- ``parts``: by ``gpu``, ``cpu``, ``ram``: a row (see ``windows``) of the whole window, with ``label``
- ``windows``: ``reason`` or null, and ``rows``: ``name``, ``start_s``, ``end_s``, ``rate_rps``, ``due``,
  ``sent``, ``succeeded``, ``failed``, ``in_flight``, ``energy_j``, ``bound_j``, ``power_w``,
  ``per_success_j``
- ``little``: fields of `analysis.timeline.Little`; ``timeline``: fields of `analysis.timeline.Timeline`
- ``systematic``: ``reason``, ``unit``, ``standard``, ``factor``, ``expanded``, ``components``, ``missing``,
  ``sentence``: apart from every interval, see `analysis.stats.systematic`
- ``macro``: null when no service was described, else see `analysis.study.scale`
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from analysis import envelope
from analysis.attribution import Attributed, Attribution, AttributionError, Method
from analysis.attribution.activity import activity
from analysis.attribution.weights import Weights
from analysis.energy import Part, systematics
from analysis.energy.meter import Meter, meters
from analysis.lint import Rule
from analysis.macro import Part as MacroPart
from analysis.plain import plain
from analysis.run import Run
from analysis.stats import Blocks
from analysis.stats.stationarity import Window
from analysis.stats.systematic import Systematic
from analysis.study import costs, scale, windows
from analysis.study.scale import Macro, Service
from analysis.study.windows import Chosen, Row
from analysis.summary import look
from analysis.timeline import Little, Timeline, littles_law, timeline
from loadgen.errors import ConfigError, RunDirError
from loadgen.types import Estimate

SCHEMA = 1
NOTHING = "nothing was done in this run"
HOSTS: tuple[Part, ...] = ("cpu", "ram")
TAKES_WEIGHTS: frozenset[Method] = frozenset({"work", "linear"})
FOLDER, FILE = "report", "findings.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for. ``window``: see `analysis.study.windows`; ``weights``: a model.json of a fit."""

    method: Method = "work"
    window: str = "whole"
    slice_s: float | None = None
    weights: Path | None = None
    service: Service | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that is known of a run.

    ``attributed``: over the window; ``whole``: over the run. Both None with ``attribution_reason``.
    ``per_success``: joules of the successes due in the window, by part and statistic. ``hosts``: the CPU's
    and the RAM's energy by time share, or why not. ``parts``: the window's energies as they
    were read. ``windows``: stages or slices. ``window`` is None when nothing was done.
    """

    run: Run
    options: Options
    summary: Mapping[str, Any]
    uncertainty: Mapping[str, Any] | None
    rules: tuple[Rule, ...]
    steady: Window
    window: Chosen | None
    attribution: Attribution | None = None
    attribution_reason: str | None = NOTHING
    attributed: Attributed | None = None
    whole: Attributed | None = None
    spent: costs.Spent | None = None
    per_success: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    hosts: Mapping[Part, Attributed | str] = field(default_factory=lambda: dict.fromkeys(HOSTS, NOTHING))
    parts: Mapping[Part, Row] = field(default_factory=dict)
    windows: tuple[Row, ...] = ()
    windows_reason: str | None = NOTHING
    timeline: Timeline | None = None
    little: Little | None = None
    systematic: Systematic | str = NOTHING
    macro: Macro | None = None
    notes: tuple[str, ...] = ()


def study(run: Run, options: Options | None = None) -> Study:
    """The findings of a run. Missing data are reasons in it, never exceptions.

    Raises ConfigError for options that cannot be, such as a window outside the run, and FitError for a
    weights file that is none.
    """
    options = options or Options()
    weights, notes = _weights(run, options)
    facts = look(run)
    metered = meters(run, facts.parts)
    steady = windows.steady_window(run, metered["gpu"])
    window = windows.choose(run, options.window, steady)
    found = Study(
        run,
        options,
        facts.summary,
        envelope.read(run.path),
        facts.verdict.rules,
        steady,
        window,
        notes=notes,
    )
    if window is None:
        return found
    start_s, end_s = window.start_s, window.end_s
    spans = windows.spans(run, window, options.slice_s)
    span = windows.Span("window", start_s, end_s)
    parts = {part: windows.rows(run, [span], meter)[0] for part, meter in metered.items()}
    found = replace(
        found,
        parts=parts,
        windows=tuple(windows.rows(run, spans, metered["gpu"])),
        windows_reason=None
        if spans
        else "the scenario has no stages; --slice SECONDS cuts the run into slices",
        timeline=timeline(run),
        little=littles_law(run, start_s, end_s),
        systematic=systematics.of_window(run, metered["gpu"], start_s, end_s),
        macro=None if options.service is None else _macro(options.service, run, metered, parts),
    )
    return _attributed(found, window, weights, windows.blocks_of(run, window, metered["gpu"]))


def _attributed(found: Study, window: Chosen, weights: Weights | None, blocks: Blocks) -> Study:
    run, did = found.run, activity(found.run)
    start_s, end_s = window.start_s, window.end_s
    hosts: dict[Part, Attributed | str] = {}
    for part in HOSTS:
        try:
            shared = Attribution(run, "time", part=part, did=did, marks_s=(start_s, end_s))
            hosts[part] = shared.window(start_s, end_s)
        except AttributionError as exc:
            hosts[part] = _why(exc)
    found = replace(found, hosts=hosts)
    if (why := _shared(run)) is not None:
        return replace(found, attribution_reason=why)
    try:
        method, marks_s = found.options.method, (start_s, end_s)
        made = Attribution(run, method, weights=weights, did=did, marks_s=marks_s)
        attributed, whole = made.window(start_s, end_s), made.window()
    except AttributionError as exc:
        return replace(found, attribution_reason=_why(exc))
    return replace(
        found,
        attribution=made,
        attribution_reason=None,
        attributed=attributed,
        whole=whole,
        spent=costs.spent(attributed),
        per_success=costs.per_success(run, whole, start_s, end_s, blocks),
    )


def _why(exc: AttributionError) -> str:
    return str(exc).removeprefix("attribution: ")


def _shared(run: Run) -> str | None:
    """Why nothing can be said of single requests though the boards' energy was read; None when it can."""
    for row in run.manifest.get("gpus") or ():
        if row.get("mig"):
            return f"{row.get('domain')} is partitioned (MIG): its power is that of all its tenants"
    here = run.power.get("server")
    for server in [row.get("server") for row in run.manifest.get("sidecars") or ()] + [here]:
        for other in (server or {}).get("others") or ():
            who = f"{other['name']} ({other['pid']})"
            return f"{other['board']} was shared with {who}: its energy is that of both"
    return None


def _weights(run: Run, options: Options) -> tuple[Weights | None, tuple[str, ...]]:
    """The weights of a model.json, and what to know of them."""
    if options.weights is None:
        return None, ()
    from analysis.fit import read_model

    model = read_model(options.weights)
    if model.weights is None:
        raise ConfigError(
            f"{options.weights}: it has no weights; a fit gives them from runs with power and a stamp a token"
        )
    if options.method not in TAKES_WEIGHTS:
        return None, (f"the method {options.method} takes no weights: {options.weights} was not used",)
    server = run.manifest.get("server") or {}
    other = [
        f"{name} {model.subject[name]}, here {server[name]}"
        for name in ("model", "gpu", "dtype")
        if model.subject.get(name) and server.get(name) and model.subject[name] != server[name]
    ]
    return model.weights, (f"the weights were fitted on {'; '.join(other)}",) if other else ()


def _macro(service: Service, run: Run, meters: Mapping[Part, Meter], parts: Mapping[Part, Row]) -> Macro:
    tokens = run.ok["output_tokens"].dropna()
    found = [
        MacroPart(part, _label(meters[part]), row.per_success_j)
        for part, row in parts.items()
        if part == "gpu" or meters[part].reason is None
    ]
    return scale.macro(service, found, float(tokens.mean()) if len(tokens) else None)


def _label(meter: Meter) -> str:
    measured = meter.measured
    return "unavailable" if measured is None or meter.reason or measured.label is None else measured.label


def as_object(found: Study) -> dict[str, Any]:
    """JSON-ready; see the module for the keys."""
    made = found.attribution
    options = found.options
    shown: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "options": {
                "method": options.method,
                "window": options.window,
                "slice_s": options.slice_s,
                "weights": options.weights,
            },
            "notes": found.notes,
            "summary": found.summary,
            "uncertainty": found.uncertainty,
            "rules": list(found.rules),
            "steady": found.steady,
            "window": found.window,
            "attribution": {
                "method": options.method,
                "reason": found.attribution_reason,
                "weights": None if made is None or made.weights is None else made.weights.source,
                "idle_from": None if made is None else made.idle_from,
                "idle_w": None if made is None else float(made.idle_w.sum()),
                "fit": None if made is None else made.fit,
                "spent": found.spent,
                "per_success": found.per_success,
            },
            "hosts": {
                part: {"reason": one, "spent": None}
                if isinstance(one, str)
                else {"reason": None, "spent": costs.spent(one)}
                for part, one in found.hosts.items()
            },
            "parts": {part: _row(row) for part, row in found.parts.items()},
            "windows": {"reason": found.windows_reason, "rows": [_row(row) for row in found.windows]},
            "timeline": found.timeline,
            "little": found.little,
            "systematic": {"reason": found.systematic}
            if isinstance(found.systematic, str)
            else {
                "reason": None,
                **asdict(found.systematic),
                "expanded": found.systematic.expanded,
                "sentence": found.systematic.describe(),
            },
            "macro": None if found.macro is None else scale.as_object(found.macro),
        }
    )
    return shown


def _row(row: Row) -> dict[str, Any]:
    fields = {key: getattr(row, key) for key in Row.__slots__ if key != "span"}
    return asdict(row.span) | fields


def write(found: Study) -> Path:
    """Writes ``report/findings.json`` of the run, in one piece, and returns its path. Raises RunDirError."""
    folder = found.run.path / FOLDER
    file = folder / FILE
    draft = file.with_suffix(".draft")
    try:
        folder.mkdir(exist_ok=True)
        draft.write_bytes(orjson.dumps(as_object(found), option=orjson.OPT_INDENT_2) + b"\n")
        os.replace(draft, file)
    except OSError as exc:
        raise RunDirError(f"{file}: cannot be written: {exc.strerror}") from exc
    return file
