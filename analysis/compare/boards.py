"""The systematic part of a ratio of GPU energies: what more requests would not average out.

A sensor's gain cancels as far as the same boards, by UUID, have the same share of both energies; the
clock's and the edges' parts are each run's own. A board whose UUID nobody told is no other run's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from analysis.compare.sides import Side
from analysis.energy import systematics
from analysis.energy.meter import Meter
from analysis.stats.systematic import Board, Component, Distribution, Systematic, combine, of_ratio
from analysis.summary import Facts


def of_sides(a: Side, b: Side) -> Systematic | str:
    """Relative, of the ratio of B's GPU energies to A's, or why it cannot be had."""
    boards: list[list[Board]] = []
    others: list[Systematic] = []
    for side in (b, a):
        found = [_of_run(facts) for facts in side.facts]
        for one in found:
            if isinstance(one, str):
                return f"{side.name}: {one}"
        known = [one for one in found if not isinstance(one, str)]
        boards.append([board for own, _ in known for board in own])
        others.append(_together([rest for _, rest in known], side.name))
    if not all(sum(board.energy_j for board in own) > 0 for own in boards):
        return "an energy is not positive"
    ratio = of_ratio(boards[0], boards[1], others[0], others[1])
    return replace(ratio, missing=tuple(dict.fromkeys(ratio.missing)))


def same_boards(a: Side, b: Side) -> bool | None:
    """Whether both sides ran on the same boards; None when a UUID is not known."""
    uuids = [
        {row.get("uuid") for run in side.runs for row in run.manifest.get("gpus") or ()} for side in (a, b)
    ]
    if not all(uuids) or any(None in found for found in uuids):
        return None
    return uuids[0] == uuids[1]


def _of_run(facts: Facts) -> tuple[list[Board], Systematic] | str:
    part, run = facts.parts.get("gpu"), facts.run
    if part is None or part.total_j is None or run.end_s is None:
        return (part.reason if part is not None else None) or "no GPU energy"
    rest = systematics.of_window(run, Meter(run, "gpu", part), 0.0, run.end_s, gains=False)
    if isinstance(rest, str):
        return rest
    boards = []
    for board in part.boards:
        name, uuid, gain_error = systematics.identity(run, board.domain)
        uuid = uuid or f"{name} of {run.path.name}, no UUID"
        if board.label == "simulated":  # its constants are named as missing, for the board as a whole
            uuid, gain_error = "simulated boards", 0.0
        boards.append(Board(uuid, board.total_j or 0.0, gain_error))
    return boards, rest


def _together(parts: Sequence[Systematic], name: str) -> Systematic:
    """Of the summed energy of a side's runs: independent from run to run; zero parts are left out."""
    squares: dict[tuple[str, Distribution], float] = {}
    for part in parts:
        for c in part.components:
            key = (f"{c.name}, {name}", c.distribution)
            squares[key] = squares.get(key, 0.0) + c.half_width**2
    components = [
        Component(key[0], math.sqrt(square), key[1]) for key, square in squares.items() if square > 0
    ]
    return combine("J", components, missing=tuple(dict.fromkeys(m for part in parts for m in part.missing)))
