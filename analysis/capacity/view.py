"""The answer for people: a ranked table, what binds, what would change it; or as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.capacity.answer import Answer, Assessed
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.workload import Workload
from analysis.console import bare_table, line
from analysis.plain import plain
from analysis.words import number, quantity
from loadgen.types import Estimate

_LABEL_CHARS = 13
_CAPTION = """max: highest rate of a replica, and half its 95 % interval; fleet: replicas at the peak;
J, money and CO2e per good request (1k: per 1,000), idle replicas in them; simulated"""


def as_json(answer: Answer, workload: Workload) -> dict[str, Any]:
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
        console.print(_table(answer, plan))
        console.print(_CAPTION, style="dim", highlight=False)
        console.print()
        best = answer.ranked[0]
        _line(console, "answer", f"{_counted(best)} ({answer.label}; ranked by {answer.criterion})", "green")
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


def _table(answer: Answer, plan: CapacityPlan) -> Table:
    columns = ["", "replica", "max 1/s", "95 %", "fleet", "J", "W peak", "idle"]
    priced = any(a.fleet is not None and a.fleet.per_good_cost.value is not None for a in answer.ranked)
    if priced:
        columns.insert(6, f"{plan.currency}/1k")
    if plan.place is not None:
        columns.insert(6, "gCO2e/1k")
    table = bare_table(*columns, left=2)
    one_format = len({a.kind.dtype for a in answer.ranked}) == 1
    for k, a in enumerate(answer.ranked, 1):
        assert a.found is not None and a.fleet is not None
        f, rate = a.fleet, a.found.max_rps
        half = "" if rate.high is None else f"±{number(rate.high - a.found.rate_rps, 2)}"
        cells = [
            str(k),
            a.name.rpartition(" ")[0] if one_format else a.name,
            number(a.found.rate_rps),
            half,
            str(int(f.replicas.max())),
            number(_value(f.per_good_j)),
            number(f.peak_w),
            number(f.idle_w),
        ]
        if priced:
            cells.insert(6, _thousand(f.per_good_cost))
        if plan.place is not None:
            cells.insert(6, _thousand(f.per_good_co2e_g))
        table.add_row(*cells)
    return table


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
    parts = [
        f"{count} replicas of {a.name}{boards}" if most > 1 else f"1 replica of {a.name}{boards}",
        f"{number(f.operating_rps)} requests/s each at the peak of {number(a.found.rate_rps)} possible",
        f"{quantity(f.per_good_j.value, 'J')} = {quantity(f.per_good_wh.value, 'Wh')} per good request",
    ]
    if f.per_good_cost.value is not None:
        parts.append(f"{number(1e3 * f.per_good_cost.value)} {f.per_good_cost.unit} per 1,000")
    if f.per_good_co2e_g.value is not None:
        parts.append(f"{number(1e3 * f.per_good_co2e_g.value)} g CO2e per 1,000")
    return ", ".join(parts)


def _lengths(plan: CapacityPlan, workload: Workload) -> str:
    jobs = workload.jobs(1.0, 1_000, 1).lengths
    known = plan.lengths is not None and plan.lengths.prompt_tokens is not None
    mean = f"{number(jobs.prompt_tokens.mean())} in / {number(jobs.reply_tokens.mean())} out tokens"
    return (
        mean
        if known and plan.lengths is not None and not plan.lengths.prompt_cv
        else f"about {mean} on average"
    )


def _slo(plan: CapacityPlan) -> str:
    limits = " and ".join(f"{k.upper()} <= {quantity(v, 's')}" for k, v in plan.slo.limits_s.items())
    return f"{limits} for {plan.slo.percentile:g} %"
