"""Which settings of measured videos differ in one thing only: the study's three sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DIMENSIONS = ("resolution", "frames", "steps")


class Setting(NamedTuple):
    """The size of a video and the work put into it: pixels, frames asked for, denoising steps."""

    height: float
    width: float
    frames: float
    steps: float

    def varying(self, dimension: str) -> tuple[float, ...]:
        """What a sweep over this dimension changes: height and width, frames, or steps."""
        return {"resolution": self[:2], "frames": self[2:3], "steps": self[3:]}[dimension]

    def held(self, dimension: str) -> tuple[float, ...]:
        """What it leaves alone, in the order of the fields."""
        return {"resolution": self[2:], "frames": (*self[:2], self.steps), "steps": self[:3]}[dimension]


class Sweep(NamedTuple):
    """Videos that differ in one dimension: their places, how many values it has, one of their settings."""

    rows: tuple[int, ...]
    values: int
    example: Setting


def find_sweeps(settings: Sequence[Setting]) -> dict[str, Sweep]:
    """For each dimension the videos that vary it with the rest held: of all such groups the one with
    the most values, then with the most videos, then the first.

    A video may stand in all three. A sweep of one value is a point: nothing varies. Of no video, none.
    """
    found = {}
    for dimension in DIMENSIONS if settings else ():
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, setting in enumerate(settings):
            groups.setdefault(setting.held(dimension), []).append(row)
        sweeps = [
            Sweep(tuple(rows), len({settings[row].varying(dimension) for row in rows}), settings[rows[0]])
            for rows in groups.values()
        ]
        found[dimension] = max(sweeps, key=lambda sweep: (sweep.values, len(sweep.rows)))
    return found
