"""Latencies of successful requests, from each of the instants that they can be counted from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import Block, Cell, Column, Prose, Section, Table
from analysis.report.subject import Subject, side_by_side
from analysis.report.words import cell, counted, figure, known, why_none

_ROWS = (
    ("ttft_s", "TTFT", "sent to first token"),
    ("ttft_from_due_s", "TTFT from due", "with the client's own delay"),
    ("ttft_from_demand_s", "TTFT from demand", "with the shaping policy's delay"),
    ("tpot_s", "TPOT", "(e2e - TTFT) / (output tokens - 1)"),
    ("itl_s", "ITL", "gaps between chunks, pooled"),
    ("e2e_s", "End to end", "sent to last read"),
    ("e2e_from_due_s", "End to end from due", "with the client's own delay"),
    ("e2e_from_demand_s", "End to end from demand", "with the shaping policy's delay"),
)
_COLUMNS = (("mean", "Mean"), ("p50", "p50"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))


def latency(subject: Subject) -> Section:
    found = subject.summary["latency"]
    pictures: list[Block] = side_by_side(subject.pictures.get("latency", ()))
    if not any(found[key]["n"] for key, _, _ in _ROWS):
        said = Prose("No request succeeded, so there is no latency.", "warn")
        return Section("latency", "Latency", [said, *pictures])
    rows: list[list[Cell]] = []
    shown: list[Mapping[str, Any]] = []
    for key, title, meaning in _ROWS:
        if not found[key]["n"] or found[key] in shown:
            continue
        shown.append(found[key])
        values = (cell(found[key][name]) for name, _ in _COLUMNS)
        rows.append([Cell(title, note=meaning), counted(found[key]["n"]), *values])
    columns = (Column("Latency"), Column("n", True), *(Column(title, True) for _, title in _COLUMNS))
    lacking: dict[str, list[str]] = {}
    for name, _ in _COLUMNS:
        for reason in sorted({why_none(row[name]) for row in shown if known(row[name]["low"]) is None}):
            lacking.setdefault(reason.removeprefix("no interval: "), []).append(name)
    note = "In brackets: 95 % sampling intervals."
    if len(shown) < sum(bool(found[key]["n"]) for key, _, _ in _ROWS):
        note += " Latencies from due and from demand are left out where they are those from sent."
    if lacking:
        reasons = (f"{reason} ({', '.join(names)})" for reason, names in lacking.items())
        note += f" Where there is none: {'; '.join(reasons)}."
    per_chunk = known(found["tokens_per_chunk"])
    if per_chunk is not None:
        note += f" A chunk brought {figure(per_chunk)} tokens on average."
    clock = "simulated, in virtual time" if subject.summary["clock"] == "virtual" else "measured"
    lead = f"Of successful requests, {clock}."
    return Section("latency", "Latency", [Table("Latencies", columns, rows, note), *pictures], lead)
