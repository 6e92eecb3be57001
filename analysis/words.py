"""Numbers in words: significant figures, prefixes, intervals, shares; names made printable.

Nothing here knows a run. A page's and a figure's own forms (`analysis.report.words`,
`analysis.figures.words`) stand on these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from loadgen.types import Estimate

WH_PER_J = 1 / 3600.0
J_PER_WH = 3600.0
PREFIXED = ("s", "J", "W", "Wh")
"""Units that take a prefix."""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


def quantity(value: float | None, unit: str, *, digits: int = 3) -> str:
    """A value with a prefix on its unit, such as ``30.5 J``, ``8.46 mWh``; a dash when None."""
    if value is None:
        return "-"
    scale, prefix = prefix_of(value, unit)
    return f"{number(value / scale, digits)} {prefix}{unit}".rstrip()


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant figures, never an exponent, thousands grouped."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return _fixed(value, _decimals(value, digits))


def interval(estimate: Estimate | Mapping[str, Any], *, prefixed: bool = True, digits: int = 3) -> str:
    """``[low, high]`` in the scale and with the decimals of the value; empty when there is none."""
    found = asdict(estimate) if isinstance(estimate, Estimate) else estimate
    value, low, high = found["value"], found["low"], found["high"]
    if value is None or low is None or high is None:
        return ""
    scale = prefix_of(value, found["unit"])[0] if prefixed else 1.0
    decimals = _decimals(value / scale or high / scale, digits)
    return f"[{_fixed(low / scale, decimals)}, {_fixed(high / scale, decimals)}]"


def in_one_scale(values: Sequence[float], unit: str, *, digits: int = 3) -> tuple[float, str, int]:
    """What to divide ``values`` by, the prefix of the unit, and the decimals: of the largest."""
    largest = max(abs(value) for value in values)
    scale, prefix = prefix_of(largest, unit)
    return scale, prefix, max(0, _decimals(largest / scale, digits))


def percent(share: float) -> str:
    """Four figures, but never 100 % for less than all."""
    return f"{min(99.99, 100 * share) if share < 1 else 100 * share:.4g} %"


def printable(text: str) -> str:
    """One line that cannot steer a terminal: names come from servers and files."""
    return "".join(c if c.isprintable() else "?" for c in text)


def prefix_of(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the prefix that says so, such as ``(1e3, "k")``; ``u`` is micro."""
    if unit not in PREFIXED or value == 0:
        return 1.0, ""
    if unit == "s" and abs(value) >= 1:
        return 1.0, ""  # 120 s, not 0.12 ks
    return next(((s, p) for s, p in _PREFIXES if abs(value) >= 0.9995 * s), _PREFIXES[-1])


def _decimals(value: float, digits: int) -> int:
    """Decimals that show ``digits`` figures; negative before the point. Rounds up first: 9.999 is 10.0."""
    if value == 0 or not math.isfinite(value):
        return 0
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return digits - 1 - math.floor(math.log10(abs(round(value, decimals))))


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals):,.{max(0, decimals)}f}"
