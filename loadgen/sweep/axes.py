"""The algebra of axes: grid, zip and list of levels, each a tuple of points; blocks multiply. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.config import Place
from loadgen.errors import ConfigError

Label = str | int | float | bool | None
"""How a level is called in the table: the value itself, or the name of one with keys."""


@dataclass(frozen=True, slots=True)
class Level:
    """One value of an axis: its name in the table, the value, and its place in the sweep's file."""

    label: Label
    value: Any
    place: Place


Axes = Mapping[str, Sequence[Level]]
Point = Mapping[str, Level]
"""A level of each axis."""


def grid(axes: Axes) -> tuple[Point, ...]:
    """Every combination; the last axis changes fastest."""
    return tuple(dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values()))


def zipped(axes: Axes) -> tuple[Point, ...]:
    """First levels together, second levels together, ... Raises ConfigError for axes of unequal length."""
    counts = {key: len(levels) for key, levels in axes.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise ConfigError(f"expected as many values in every axis, got {told}")
    return tuple(dict(zip(axes, levels, strict=True)) for levels in zip(*axes.values(), strict=True))


def listed(points: Sequence[Point]) -> tuple[Point, ...]:
    """These points, as they stand. Raises ConfigError when they are not all of the same axes."""
    for number, point in enumerate(points):
        if set(point) != set(points[0]):
            raise ConfigError(
                f"expected the same keys in every point ({', '.join(map(str, points[0]))}), got "
                f"{', '.join(map(str, point))} in point {number}"
            )
    return tuple({key: point[key] for key in points[0]} for point in points)


def product(blocks: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Every combination of a point of each block. Raises ConfigError for an axis that is in two."""
    seen: set[str] = set()
    for block in blocks:
        again = seen & set(block[0])
        if again:
            raise ConfigError(f"expected every key in one axis, got {', '.join(sorted(again))} in two")
        seen |= set(block[0])
    return tuple(
        {key: level for part in parts for key, level in part.items()} for parts in itertools.product(*blocks)
    )
