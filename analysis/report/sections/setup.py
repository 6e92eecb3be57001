"""What ran: the resolved scenario, the hardware, the software, the sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from analysis.report.blocks import Block, Cell, Code, Column, Facts, Prose, Section, Table
from analysis.report.sections.load import sidecars
from analysis.report.subject import Subject
from analysis.report.words import DASH, figure, given, known, listed, plain


def scenario_yaml(manifest: Mapping[str, Any]) -> str | None:
    """The resolved scenario as a file that `loadgen run` takes; None when the manifest has none."""
    scenario = manifest.get("scenario")
    return yaml.safe_dump(scenario, sort_keys=False, allow_unicode=False, width=96) if scenario else None


def configuration(subject: Subject) -> Section:
    manifest = subject.manifest
    text = scenario_yaml(manifest)
    pairs = [
        ("Scenario", given(manifest.get("name"))),
        ("Seed", given(manifest.get("seed"))),
        ("Hash (SHA-256)", given(manifest.get("scenario_hash"))),
        ("Protocol", given(manifest.get("protocol"))),
        ("Clock", given(manifest.get("clock"))),
        ("Loop", "closed" if manifest.get("closed_loop") else "open"),
    ]
    blocks: list[Block] = [Facts(pairs)]
    if text is None:
        blocks.append(Prose("The manifest holds no resolved scenario.", "warn"))
    else:
        blocks.append(Code("scenario.yaml as resolved, overrides applied, secrets as ***", text))
    return Section("configuration", "Configuration", blocks)


def hardware(subject: Subject) -> Section:
    manifest = subject.manifest
    server, host = manifest.get("server") or {}, manifest.get("host") or {}
    blocks: list[Block] = [Facts(_server(server), title="Server under test")]
    limits = server.get("limits") or {}
    if limits:
        rows = [[Cell(str(key)), Cell(given(value), known(value))] for key, value in limits.items()]
        blocks.append(Table("Limits of the server", (Column("Limit"), Column("Value", True)), rows))
    blocks += [_boards(manifest.get("gpus") or ()), _domains(manifest.get("power") or {})]
    found = sidecars(subject.summary["sidecars"])
    if found is not None:
        blocks.append(found)
    blocks.append(Facts(_host(host), title="Machine that sent the load"))
    packages = manifest.get("packages") or {}
    blocks.append(
        Facts([(str(k), given(v)) for k, v in packages.items()] or [("Packages", DASH)], title="Software")
    )
    return Section("hardware", "Hardware and software", blocks)


def _server(server: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [
        ("Kind", given(server.get("kind"))),
        ("Address", given(server.get("url"))),
        ("Model", given(server.get("model"))),
        ("Board", given(server.get("gpu"))),
        ("Number format", given(server.get("dtype"))),
        ("Shards", given(server.get("shards"))),
        ("Dialect", given(server.get("dialect"))),
        ("Scheduler", given(server.get("scheduler"))),
    ]
    return [pair for pair in pairs if pair[1] != DASH] or [("Server", "not known")]


def _boards(rows: Any) -> Block:
    if not rows:
        return Prose("No board is named in the manifest.", "quiet")
    columns = (Column("Board"), Column("Name"), Column("Power limit", True), Column("UUID"), Column("Driver"))
    made = [
        [
            Cell(given(row.get("domain"))),
            Cell(given(row.get("name"))),
            plain(row.get("power_limit_w"), "W", 4),
            Cell(given(row.get("uuid"))),
            Cell(given(row.get("driver"))),
        ]
        for row in rows
    ]
    return Table("Boards", columns, made)


def _domains(power: Mapping[str, Any]) -> Block:
    rows = power.get("domains") or ()
    if not rows:
        return Prose(f"No power was read: {given(power.get('reason'))}.", "warn")
    columns = (
        Column("Domain"),
        Column("Method"),
        Column("New value every", True),
        Column("Averaged over", True),
        Column("Note", wide=True),
    )
    made = [
        [
            Cell(given(row.get("name"))),
            Cell(given(row.get("method"))),
            plain(row.get("update_s"), "s"),
            plain(row.get("averaging_s"), "s"),
            Cell(given(row.get("note"))),
        ]
        for row in rows
    ]
    every, baseline = figure(power.get("interval_s"), "s"), figure(power.get("baseline_s"), "s")
    note = f"Read every {every}, idle baseline {baseline}."
    return Table("Power domains", columns, made, note)


def _host(host: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory_bytes = known(host.get("memory_bytes"))
    memory = DASH if memory_bytes is None else f"{memory_bytes / 2**30:.1f} GiB"
    return [
        ("System", listed([v for v in (host.get("system"), host.get("release")) if v])),
        ("Architecture", given(host.get("machine"))),
        ("Cores", given(host.get("cpus"))),
        ("Memory", memory),
    ]
