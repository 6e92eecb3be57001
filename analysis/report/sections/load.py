"""What the server was asked to do and did: rates, steadiness, windows; requests by status and cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import Block, Cell, Column, Facts, Prose, Section, Table
from analysis.report.subject import Subject, side_by_side
from analysis.report.words import (
    DASH,
    cell,
    certainty,
    count,
    counted,
    ends_of,
    figure,
    given,
    known,
    plain,
    share,
    tagged,
    value_of,
)
from loadgen.types import STATUSES


def load(subject: Subject) -> Section:
    summary, found = subject.summary, subject.found
    rate, tokens = summary["rate"], summary["tokens"]
    pairs = [
        ("Offered rate", _or_why(rate["offered_rps"])),
        ("Achieved rate", _with_interval(rate["achieved_rps"])),
        ("In flight, mean", _or_why(rate["in_flight_mean"])),
        ("Lateness of the client", _lateness(summary)),
        ("Steady state", _steady(found["steady"])),
        ("Little's law", _little(found["little"])),
        ("Tokens", _tokens(tokens)),
    ]
    if summary["goodput"] is not None:
        pairs.append(("Goodput", _goodput(summary["goodput"])))
    blocks: list[Block] = [Facts(pairs), *side_by_side(subject.pictures.get("load", ()))]
    windows = found["windows"]
    if windows["rows"]:
        blocks.append(_windows(windows["rows"]))
    elif windows["reason"]:
        blocks.append(Prose(f"No table of stages: {windows['reason']}.", "quiet"))
    return Section("load", "Load and steady state", blocks)


def _or_why(estimate: Mapping[str, Any]) -> str:
    if known(estimate["value"]) is None:
        return str(estimate["method"])
    return value_of(estimate)


def _with_interval(estimate: Mapping[str, Any]) -> str:
    if known(estimate["value"]) is None:
        return certainty(estimate)
    said = certainty(estimate)
    return f"{value_of(estimate)}, {said if ends_of(estimate) else said[:1].lower() + said[1:]}"


def _lateness(summary: Mapping[str, Any]) -> str:
    late, reason = summary["lateness_s"], summary["lateness_reason"]
    if late is None:
        return str(reason)
    said = ", ".join(f"{key} {figure(late[key], 's')}" for key in ("p50", "p99", "max"))
    return f"{said}; {reason}" if reason else said


def _steady(steady: Mapping[str, Any]) -> str:
    if steady["start_s"] is None:
        return f"none: {steady['reason']} ({steady['rule']})"
    span = f"{figure(steady['start_s'], 's', 4)} to {figure(steady['end_s'], 's', 4)}"
    return f"stationary from {span} ({steady['rule']})"


def _little(little: Mapping[str, Any] | None) -> str:
    if little is None:
        return "not checked: nothing was done in this run"
    if known(little["ratio"]) is None:
        return f"not checked: {little['reason']}"
    said = (
        f"L = {figure(little['in_flight'])} in flight by the {little['source']}, λW = "
        f"{figure(little['rate_rps'])} /s x {figure(little['mean_s'], 's')} = {figure(little['expected'])}; "
        f"ratio {figure(little['ratio'], '', 4)}"
    )
    return f"{said} ({little['reason']})" if little["reason"] else said


def _tokens(tokens: Mapping[str, Any]) -> str:
    if tokens["output"] is None:
        return "no successful request has a token count"
    origin = ", ".join(f"{count(n)} replies by {who}" for who, n in tokens["from"].items())
    into = f"{count(tokens['input'])} in, " if tokens["input"] is not None else ""
    return (
        f"{into}{count(tokens['output'])} out, {value_of(tokens['output_tokens_per_s'])}; counts of {origin}"
    )


def _goodput(good: Mapping[str, Any]) -> str:
    limits = ", ".join(f"{key.removesuffix('_s')} {figure(limit, 's')}" for key, limit in good["slo"].items())
    ends = ends_of(good["ratio"])
    return (
        f"{value_of(good['ratio'])} {ends} of all records, {value_of(good['rps'])}, within {limits}".replace(
            "  ", " "
        )
    )


def _windows(rows: Any) -> Table:
    columns = (
        Column("Window"),
        Column("From", True),
        Column("To", True),
        Column("Due", True),
        Column("Sent", True),
        Column("Succeeded", True),
        Column("Failed", True),
        Column("In flight", True),
        Column("GPU power", True),
        Column("GPU energy", True),
        Column("Per success", True),
    )
    made = [
        [
            Cell(str(row["name"])),
            plain(row["start_s"], "s", 4),
            plain(row["end_s"], "s", 4),
            *(counted(row[key]) for key in ("due", "sent", "succeeded", "failed")),
            plain(row["in_flight"]),
            *(cell(row[key]) for key in ("power_w", "energy_j", "per_success_j")),
        ]
        for row in rows
    ]
    note = "Requests count where they ended. In brackets: 95 % sampling intervals, where there is one."
    return Table("Stages or slices of the run", columns, made, note)


def requests(subject: Subject) -> Section:
    found = subject.summary["requests"]
    records = known(found["records"]) or 0.0
    statuses = [s for s in STATUSES if found[s] or s == "ok"]
    rows = [[tagged(s), counted(found[s]), _part(found[s], records)] for s in statuses]
    if found["missing"]:
        rows.append([tagged("missing"), counted(found["missing"]), Cell(DASH)])
    note = f"{count(found['records'])} records of {count(found['planned'])} planned requests."
    columns = (Column("Status"), Column("Requests", True), Column("Share", True))
    blocks: list[Block] = [Table("Requests by status", columns, rows, note)]
    if found["errors"]:
        causes = [[Cell(str(cause)), counted(n), _part(n, records)] for cause, n in found["errors"].items()]
        heads = (Column("Cause"), Column("Requests", True), Column("Share", True))
        blocks.append(Table("Failures by cause, the commonest ten", heads, causes))
    lead = "Only successes enter latencies and energy per request; the energy of failures stays in the total."
    return Section("requests", "Requests", blocks, lead)


def _part(n: Any, records: float) -> Cell:
    part = (known(n) or 0.0) / records if records > 0 else None
    return Cell(share(part), part)


def sidecars(rows: Any) -> Table | None:
    """How each sidecar's clock and samples stood."""
    if not rows:
        return None
    columns = (
        Column("Sidecar"),
        Column("Every", True),
        Column("Clock within", True),
        Column("Drift", True),
        Column("Samples", True),
        Column("Missing", True),
        Column("Reconnects", True),
        Column("Server on"),
    )
    made = [
        [
            Cell(given(row["name"] or row["url"]), note=str(row["url"] if row["name"] else "")),
            plain(row["interval_s"], "s"),
            plain(row["clock_bound_s"], "s"),
            plain(row["drift_ppm"], "ppm"),
            Cell(f"{count(row['received'])} of {count(row['expected'])}", known(row["received"])),
            counted(row["missing"]),
            counted(row["reconnects"]),
            Cell(", ".join(str(b) for b in row["server_boards"]) if row["server_boards"] else "not known"),
        ]
        for row in rows
    ]
    reasons = " ".join(
        f"{given(row['name'] or row['url'])}: {row['reason']}." for row in rows if row["reason"]
    )
    return Table("Power sidecars", columns, made, reasons)
