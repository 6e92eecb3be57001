"""The answer for people: a ranked table, what binds, what would change it; or as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from analysis.capacity.answer import Answer, Assessed
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.workload import HOUR_S, Workload
from analysis.console import bare_table, line
from analysis.plain import plain
from analysis.words import interval, number, quantity
from loadgen.types import Estimate

_LABEL_CHARS, _MOST_BINS = 13, 31
_CAPTION = """max: highest rate of a replica, half its 95 % interval; fleet: replicas at peak;
J, money, CO2e: per good request (1k: per 1,000), idle time included; simulated"""


def as_object(answer: Answer, workload: Workload) -> dict[str, Any]:
    """The plan, the demand and everything found, as JSON has it. ``null`` has its reason beside it."""
    plan, demand = workload.plan, workload.demand
    return {
        "plan": plan.model_dump(mode="json"),
        "demand": {
            "said": demand.said,
            "mean_rps": demand.mean_rps,
            "peak_rps": demand.peak_rps,
            "rates_rps": plain(demand.rates_rps),
            "bins_s": plain(demand.bins_s),
            "arrivals": workload.arrivals,
        },
        "label": answer.label,
        "criterion": answer.criterion,
        "ranked": [_candidate(a) for a in answer.ranked],
        "left_out": [{"name": a.name, "kind": plain(a.kind), "reason": a.reason} for a in answer.left_out],
        "shaping": plain(answer.shaping),
        "sensitivity": plain(answer.sensitivity),
        "notes": list(answer.notes),
    }


def _candidate(a: Assessed) -> dict[str, Any]:
    assert a.found is not None and a.fluid is not None
    return {
        "name": a.name,
        "kind": plain(a.kind),
        "max_rps": plain(a.found.max_rps),
        "good_share_at_max": plain(a.found.share),
        "fluid": plain(a.fluid),
        "crossings_rps": [crossing.rate_rps for crossing in a.found.crossings],
        "evaluations": a.found.evaluations,
        "search_s": a.search_s,
        "binding": plain(a.binding),
        "binding_sentence": a.binding.sentence if a.binding is not None else None,
        "fleet": plain(a.fleet),
        "fleet_switched_otherwise": plain(a.other),
    }


def render(answer: Answer, workload: Workload, console: Console) -> None:
    """Headline, table, left out, shaping, sensitivity, notes."""
    plan, demand = workload.plan, workload.demand
    _line(console, "question", f"{plan.model} for {demand.said}, {_lengths(plan, workload)}; {_slo(plan)}")
    peak = f"mean {number(demand.mean_rps)}, peak {number(demand.peak_rps)} requests/s"
    off = "replicas switched off when not needed" if plan.switch_off else "replicas always on"
    _line(
        console,
        "demand",
        f"{peak}, {workload.arrivals} arrivals; headroom {plan.headroom:.0%}, {off}",
    )
    if answer.ranked:
        console.print()
        console.print(_table(answer, plan, console))
        console.print(_CAPTION, style="dim", highlight=False)
        console.print()
        best = answer.ranked[0]
        _line(console, "answer", f"{_counted(best)} ({answer.label}; ranked by {answer.criterion})", "green")
        for text in _hours(best, plan):
            _line(console, "by hour" if demand.bins_s[0] == HOUR_S else "by bin", text)
        for k, a in enumerate(answer.ranked, 1):
            assert a.binding is not None
            _line(console, f"{k} binds", a.binding.sentence)
    else:
        _line(console, "answer", f"no candidate can serve this ({answer.label})", "red")
    for a in answer.left_out:
        _line(console, "left out", f"{a.name}: {a.reason}")
    if answer.shaping is not None:
        _line(console, "shaping", answer.shaping.sentence)
    if answer.sensitivity is not None:
        for text in answer.sensitivity.sentences:
            _line(console, "sensitivity", text)
    for note in answer.notes:
        _line(console, "note", note)


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    line(console, f"{label:<{_LABEL_CHARS}}", text, style)


def _table(answer: Answer, plan: CapacityPlan, console: Console) -> Table:
    """The ranking in as many columns as fit; all of them are in the JSON."""
    for left_out in ((), ("95 %",), ("95 %", "idle"), ("95 %", "idle", "W peak")):
        table = _columns(answer, plan, left_out)
        if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
            break
    return table


def _columns(answer: Answer, plan: CapacityPlan, left_out: tuple[str, ...]) -> Table:
    fleets = [(a, a.found, a.fleet) for a in answer.ranked if a.found is not None and a.fleet is not None]
    one_format = len({a.kind.dtype for a in answer.ranked}) == 1
    columns: dict[str, list[str]] = {
        "": [str(k) for k in range(1, len(fleets) + 1)],
        "replica": [a.name.rpartition(" ")[0] if one_format else a.name for a, _, _ in fleets],
        "max 1/s": [number(found.rate_rps) for _, found, _ in fleets],
        "95 %": [_half(found.max_rps) for _, found, _ in fleets],
        "fleet": [f"{int(f.replicas.max()):,}" for _, _, f in fleets],
        "J": [number(_value(f.per_good_j)) for _, _, f in fleets],
    }
    if any(f.per_good_cost.value is not None for _, _, f in fleets):
        columns[f"{plan.currency}/1k"] = [_thousand(f.per_good_cost) for _, _, f in fleets]
    if plan.place is not None:
        columns["gCO2e/1k"] = [_thousand(f.per_good_co2e_g) for _, _, f in fleets]
    columns["W peak"] = [number(f.peak_w) for _, _, f in fleets]
    columns["idle"] = [number(f.idle_w) for _, _, f in fleets]
    for name in left_out:
        del columns[name]
    table = bare_table(*columns, left=2)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _half(rate: Estimate) -> str:
    return "" if rate.high is None else f"±{number(rate.high - _value(rate), 2)}"


def _thousand(estimate: Estimate) -> str:
    return "-" if estimate.value is None else number(1e3 * estimate.value)


def _value(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def _counted(a: Assessed) -> str:
    assert a.fleet is not None and a.found is not None
    f = a.fleet
    most, least = int(f.replicas.max()), int(f.replicas.min())
    count = f"{most}" if most == least else f"{least} to {most}"
    boards = "" if a.kind.shards == 1 else f" ({f.boards} boards)"
    joules = f"{quantity(f.per_good_j.value, 'J')} {interval(f.per_good_j)}"
    parts = [
        f"{count} replicas of {a.name}{boards}" if most > 1 else f"1 replica of {a.name}{boards}",
        f"{number(f.operating_rps)} requests/s each at the peak, of {number(a.found.rate_rps)} possible",
        f"{joules} = {quantity(f.per_good_wh.value, 'Wh')} per good request",
    ]
    if f.per_good_cost.value is not None:
        parts.append(f"{number(1e3 * f.per_good_cost.value)} {f.per_good_cost.unit} per 1,000")
    if f.per_good_co2e_g.value is not None:
        parts.append(f"{number(1e3 * f.per_good_co2e_g.value)} g CO2e per 1,000")
    return ", ".join(parts)


def _hours(a: Assessed, plan: CapacityPlan) -> list[str]:
    """Replicas bin by bin where there are few bins, and what switching them would change."""
    f, other = a.fleet, a.other
    if f is None or other is None:
        return []
    need = f if plan.switch_off else other
    lines = []
    if len(need.replicas) <= _MOST_BINS:
        lines.append(f"replicas needed: {' '.join(map(str, need.replicas.tolist()))}")
    parts = []
    always, switched = (other, f) if plan.switch_off else (f, other)
    for name, key in (("energy", "per_good_j"), ("cost", "per_good_cost")):
        before, after = getattr(always, key).value, getattr(switched, key).value
        if before is not None and after is not None:
            parts.append(f"{name} {after / before - 1:+.0%}")
    lines.append(f"off when not needed, against always on: {', '.join(parts)} per good request")
    return lines


def _lengths(plan: CapacityPlan, workload: Workload) -> str:
    given, seen = plan.lengths, workload.observed
    if seen is not None:
        return f"{number(seen[0].mean())} in / {number(seen[1].mean())} out tokens on average"
    assert given is not None and given.prompt_tokens is not None and given.output_tokens is not None
    spread = " on average" if given.prompt_cv or given.output_cv else ""
    return f"{given.prompt_tokens:,} in / {given.output_tokens:,} out tokens{spread}"


def _slo(plan: CapacityPlan) -> str:
    limits = " and ".join(f"{k.upper()} <= {quantity(v, 's')}" for k, v in plan.slo.limits_s.items())
    return f"{limits} for {plan.slo.percentile:g} %"
