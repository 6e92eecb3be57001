"""What two runs differ in besides their figures: hardware, server, sampling, scenario and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from analysis.compare.sides import Side
from analysis.run import Run
from analysis.served import profile_served
from analysis.words import printable

Section = Literal["hardware", "server", "protocol", "clock", "sampling", "load", "scenario", "software"]
SECTIONS: tuple[Section, ...] = (
    "hardware",
    "server",
    "protocol",
    "clock",
    "sampling",
    "load",
    "scenario",
    "software",
)
ABSENT = "not said"
_SERVER = ("kind", "url", "model", "gpu", "dtype", "shards", "dialect", "scheduler", "limits")
_POWER = ("interval_s", "baseline_s", "label")
_DOMAIN = ("method", "averaging_s", "update_s")
_LOAD = ("load", "prompts", "seed")
_ORIGINS = ("sources", "uncertainty")
"""Of a board's constants: where they are from, which is no difference of the board."""
_BESIDES = ("name", "power")
"""Of a scenario: its name heads the columns; its power section is under sampling as it came out."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A key that differs. ``values``: of each side, as text; several of a side's runs joined by `` | ``."""

    section: Section
    key: str
    values: tuple[str, ...]


def listed(sides: Sequence[Side]) -> tuple[Listed, ...]:
    """Every key that is not the same in all runs of all sides, by section."""
    profiled = any("profile" in (run.manifest.get("server") or {}) for side in sides for run in side.runs)
    told = [[dict(_facts(run, profiled)) for run in side.runs] for side in sides]
    keys = dict.fromkeys(key for side in told for run in side for key in run)
    found = []
    for section, key in sorted(keys, key=lambda pair: SECTIONS.index(pair[0])):
        texts = [[_text(run.get((section, key))) for run in side] for side in told]
        if len({text for side in texts for text in side}) > 1:
            values = tuple(" | ".join(dict.fromkeys(side)) for side in texts)
            found.append(Listed(section, key, values))
    return tuple(found)


def _facts(run: Run, profiled: bool) -> Iterator[tuple[tuple[Section, str], Any]]:
    manifest = run.manifest
    for row in manifest.get("gpus") or ():
        board = row.get("domain") or f"board {row.get('index')}"
        for key, value in row.items():
            if key not in ("domain", "index"):
                yield ("hardware", f"{board}.{key}"), value
    yield from _flat("hardware", "host", manifest.get("host"))
    server = manifest.get("server") or {}
    for key in (*_SERVER, *(k for k in server if k not in (*_SERVER, "profile"))):
        yield from _flat("server", key, server.get(key))
    if (
        profiled and (board := profile_served(run)) is not None
    ):  # its constants, also where they are the table's
        for key, constants in (("board", board.gpu), ("efficiency", board.efficiency)):
            values = {name: value for name, value in asdict(constants).items() if name not in _ORIGINS}
            yield from _flat("server", key, values)
    for key in ("protocol", "closed_loop"):
        yield ("protocol", key), manifest.get(key)
    yield ("clock", "clock"), manifest.get("clock")
    power = manifest.get("power") or {}
    for key in _POWER:
        yield ("sampling", key), power.get(key)
    for row in power.get("domains") or ():
        for key in _DOMAIN:
            yield ("sampling", f"{row.get('name')}.{key}"), row.get(key)
    for sidecar in manifest.get("sidecars") or ():
        name = sidecar.get("name") or "sidecar"
        yield ("sampling", f"{name}.interval_s"), sidecar.get("interval_s")
    scenario = manifest.get("scenario") or {}
    for key, value in scenario.items():
        if key not in _BESIDES:
            yield from _flat("load" if key in _LOAD else "scenario", key, value)
    if not scenario:
        yield ("load", "seed"), manifest.get("seed")
        yield from _flat("scenario", "slo", manifest.get("slo"))
    yield from _flat("software", "packages", manifest.get("packages"))
    yield from _flat("software", "git", manifest.get("git"))


def _flat(section: Section, key: str, value: Any) -> Iterator[tuple[tuple[Section, str], Any]]:
    if isinstance(value, Mapping) and value:
        for inner, below in value.items():
            yield from _flat(section, f"{key}.{inner}", below)
    else:
        yield (section, key), value


def _text(value: Any) -> str:
    """One line, without control characters: names come from servers."""
    if value is None or value == {}:
        return ABSENT
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))
