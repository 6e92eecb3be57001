"""What is compared: sides made of one run or of several alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from analysis.run import Run
from analysis.summary import Facts, look
from analysis.words import printable
from loadgen.errors import LoadgenError


class CompareError(LoadgenError):
    """These runs cannot be compared so; the message says why."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things compared. ``why``: how it came to have several runs; None of one run.

    ``reasons``: of its invalid runs, each why it is so.
    """

    name: str
    facts: tuple[Facts, ...]
    why: str | None = None

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(f.run for f in self.facts)

    @property
    def reasons(self) -> tuple[str, ...]:
        several = len(self.facts) > 1
        return tuple(
            f"{f.run.path.name}: {reason}" if several else str(reason)
            for f in self.facts
            for reason in f.summary["reasons"]
        )

    @property
    def valid(self) -> bool:
        return not self.reasons


def started_s(run: Run) -> float | None:
    """Wall time at which the run began, seconds since 1970; None when the manifest does not say."""
    try:
        said = str((run.manifest.get("anchors") or {})["wall_utc"])
        return datetime.fromisoformat(said).timestamp()
    except (KeyError, ValueError):
        return None


def sides_of(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]] | None = None) -> tuple[Side, ...]:
    """The sides in the order given: named groups, or the runs, those that repeat a scenario together.

    Raises CompareError when fewer than two sides are left, or a group is empty.
    """
    if groups:
        if runs:
            raise CompareError("compare: expected runs or groups of runs, got both")
        for name, members in groups.items():
            if not members:
                raise CompareError(f"compare: group {name}: expected at least one run")
        sides = [
            Side(name, tuple(look(run) for run in members), "as grouped by hand")
            for name, members in groups.items()
        ]
    else:
        sides = _alike([look(run) for run in runs])
    if len(sides) < 2:
        raise CompareError(f"compare: expected at least two runs or groups, got {len(sides)}")
    return tuple(sides)


def _alike(facts: Sequence[Facts]) -> list[Side]:
    """One side of the runs of a scenario, seed aside, on one server and board; if two sides are left."""
    found: dict[bytes, list[Facts]] = {}
    for one in facts:
        found.setdefault(_repeats(one.run), []).append(one)
    if not 1 < len(found) < len(facts):
        names = _distinct([one.run.name for one in facts])
        return [Side(name, (one,)) for name, one in zip(names, facts, strict=True)]
    why = "the same scenario, seed aside, on the same server and boards"
    names = _distinct([members[0].run.name for members in found.values()])
    return [
        Side(name, tuple(members), why if len(members) > 1 else None)
        for name, members in zip(names, found.values(), strict=True)
    ]


def _repeats(run: Run) -> bytes:
    """Equal for runs that repeat each other; of a run without a scenario, its own path."""
    scenario = run.manifest.get("scenario")
    if not scenario:
        return str(run.path).encode()
    plain = {key: value for key, value in scenario.items() if key != "seed"}
    where = [run.manifest.get(key) for key in ("server", "protocol", "gpus", "host", "packages")]
    return orjson.dumps([plain, where], option=orjson.OPT_SORT_KEYS)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names in printable letters, those that occur again with their number behind them."""
    names = [printable(name) for name in names]
    counted: dict[str, int] = {}
    found = []
    for name in names:
        counted[name] = counted.get(name, 0) + 1
        found.append(f"{name} #{counted[name]}" if names.count(name) > 1 else name)
    return found
