"""Which settings of measured videos differ in one thing only: the study's three sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

VARIES: Mapping[str, tuple[str, ...]] = {
    "resolution": ("height", "width"),
    "frames": ("frames",),
    "steps": ("steps",),
}
"""What of a `Setting` a sweep over each dimension changes."""


class Setting(NamedTuple):
    """The size of a video and the work put into it: pixels, frames asked for, denoising steps."""

    height: float
    width: float
    frames: float
    steps: float

    def varying(self, dimension: str) -> tuple[float, ...]:
        """What a sweep over this dimension changes: height and width, frames, or steps."""
        return tuple(getattr(self, name) for name in VARIES[dimension])

    def held(self, dimension: str) -> dict[str, float]:
        """What it leaves alone, by name."""
        return {name: value for name, value in self._asdict().items() if name not in VARIES[dimension]}


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
    for dimension in VARIES if settings else ():
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, setting in enumerate(settings):
            groups.setdefault(tuple(setting.held(dimension).values()), []).append(row)
        sweeps = [
            Sweep(tuple(rows), len({settings[row].varying(dimension) for row in rows}), settings[rows[0]])
            for rows in groups.values()
        ]
        found[dimension] = max(sweeps, key=lambda sweep: (sweep.values, len(sweep.rows)))
    return found
