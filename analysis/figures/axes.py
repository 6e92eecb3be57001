"""Axes with few ticks, labelled with plain numbers; and steps between bins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def number_axis(axis: Axis, most: int = 5) -> None:
    """Few ticks, labelled with plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
    axis.set_minor_locator(NullLocator())


def log_axis(ax: Axes, which: str, low: float, high: float, most: int = 7) -> None:
    """A logarithmic axis over [low, high], both positive, ticks at 1, 2, 5 or whole decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
    at = log_ticks(low, high, most)
    axis.set_major_locator(FixedLocator(at))
    axis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Ticks in [low, high] for a logarithmic axis: the densest of the usual sets with at most ``most``."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def inside(steps: Sequence[float], stride: int = 1) -> list[float]:
        decades = range(first - first % stride, last + 1, stride)
        return [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high * (1 + 1e-9)]

    for steps, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        at = inside(steps, stride)
        if len(at) <= most:
            break
    if len(at) < 3:
        even = MaxNLocator(max(most - 2, 3), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        at = [float(x) for x in even if low <= x <= high and x > 0]
    return at


def tick(x: float) -> str:
    """A tick's label: no exponent between 1e-6 and 1e9, thousands grouped."""
    if x == 0:
        return "0"
    size = abs(x)
    if not 1e-6 <= size < 1e9:
        return f"{x:.0e}".replace("-", "\u2212")
    decimals = max(0, 3 - math.floor(math.log10(size))) if size < 1000 else 1
    said = f"{x:,.{decimals}f}"
    if "." in said:
        said = said.rstrip("0").rstrip(".")
    return said.replace("-", "\u2212")


def limits(values: Floats, *, log: bool, pad: float = 0.04) -> tuple[float, float]:
    """Ends of an axis with a little room on both sides of finite values (n,), n > 0."""
    low, high = float(np.min(values)), float(np.max(values))
    if log:
        room = max((high / low) ** pad, 1.05)
        return low / room, high * room
    room = pad * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def steps(ax: Axes, edges: Floats, level: Floats, color: str, dash: Any) -> None:
    """A level (K,) that holds from each edge (K + 1,) to the next."""
    held = np.append(level, level[-1:])
    ax.step(edges, held, where="post", color=color, linestyle=dash, linewidth=1.5)
