"""Figures in words: a value with its unit, its interval or why there is none, its label.

Nothing here ever says nan, inf or None: what does not exist is a dash, and its reason stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import Card, Cell, Tone
from analysis.words import PREFIXED, in_one_scale, percent
from analysis.words import interval as _interval
from analysis.words import quantity as _quantity

DASH = "\u2013"
_TONES: Mapping[str, Tone] = {
    "measured": "measured",
    "estimated": "estimated",
    "simulated": "simulated",
    "counted": "measured",
    "ok": "good",
    "holds": "good",
    "valid": "good",
    "equal": "good",
    "not equal": "bad",
    "cannot be told": "warn",
    "stationary": "good",
    "invalid": "bad",
    "impossible": "bad",
    "error": "bad",
    "timeout": "bad",
    "warning": "warn",
    "rejected": "warn",
    "cancelled": "warn",
    "dropped": "warn",
    "missing": "warn",
    "unavailable": "warn",
    "not judged": "quiet",
}
_ROUNDING = 1e-9
_SMALLEST = 1e-6
"""Below it a figure whose unit takes no prefix is written with an exponent."""
_KNOWN_UNITS = {"1": "", "1/s": "/s", "1/J": "/J", "requests": ""}

Estimated = Mapping[str, Any]
"""An `loadgen.types.Estimate` as an object."""


def tone(word: str) -> Tone:
    """How a label, status or verdict is set off."""
    return _TONES.get(word, "plain")


def known(value: Any) -> float | None:
    """A finite number, or None."""
    if value is None or isinstance(value, bool | str):
        return None
    return float(value) if math.isfinite(value) else None


def figure(value: Any, unit: str = "", digits: int = 3) -> str:
    """``8.46 mWh``; a dash when there is none."""
    found = known(value)
    if found is None:
        return DASH
    shown = _KNOWN_UNITS.get(unit, unit)
    if 0 < abs(found) < _SMALLEST and shown not in PREFIXED:
        return f"{found:.{digits - 1}e} {shown}".rstrip()
    return _micro(_quantity(found, shown, digits=digits))


def share(value: Any) -> str:
    """A part of 1 in percent; never 100 % for less than all."""
    found = known(value)
    return DASH if found is None else percent(found)


def count(value: Any) -> str:
    found = known(value)
    return DASH if found is None else f"{found:,.0f}"


def value_of(estimate: Estimated | None, digits: int = 3) -> str:
    if estimate is None:
        return DASH
    if estimate["unit"] == "1":
        return share(estimate["value"])
    return figure(estimate["value"], estimate["unit"], digits)


def ends_of(estimate: Estimated | None) -> str:
    """``[8.41, 8.51]`` in the scale of the value; empty when there is no interval, or one without width."""
    if estimate is None or any(known(estimate[key]) is None for key in ("value", "low", "high")):
        return ""
    if estimate["low"] == estimate["high"]:
        return ""
    if estimate["unit"] == "1":
        return f"[{share(estimate['low'])}, {share(estimate['high'])}]"
    return _interval(estimate)


def why_none(estimate: Estimated | None) -> str:
    """Why a value, or an interval of it, does not exist."""
    if estimate is None:
        return "not part of this run"
    if known(estimate["value"]) is not None and known(estimate["low"]) is not None:
        return "no interval: nothing varied from block to block"
    said = [part.strip() for part in str(estimate["method"]).split(";")]
    for i, part in enumerate(said):
        if part.startswith("no interval"):
            return "; ".join(said[i:])
        if part.startswith("unavailable"):
            return "; ".join(said[i:]).removeprefix("unavailable: ")
    return "no interval: a sum or count of this run, not an average of it"


def certainty(estimate: Estimated | None) -> str:
    """The interval with its level, or why it or the value is missing; a sentence."""
    ends = ends_of(estimate)
    if estimate is None or not ends:
        lacking = estimate is None or known(estimate["value"]) is None
        return f"Unavailable: {why_none(estimate)}" if lacking else _sentence(why_none(estimate))
    unit = "" if estimate["unit"] == "1" else value_of(estimate).partition(" ")[2]
    return f"{100 * estimate['level']:g} % interval {ends} {unit}".rstrip()


def cell(estimate: Estimated | None, digits: int = 3) -> Cell:
    """A value with its interval under it."""
    if estimate is None or known(estimate["value"]) is None:
        return Cell(DASH)
    return Cell(value_of(estimate, digits), known(estimate["value"]), ends_of(estimate))


def difference(estimate: Estimated, size: float) -> Cell:
    """A difference of figures of about ``size``, in the scale of the widest of it and its ends.

    Below 1e-9 of them it is rounding, and shown as 0.
    """
    value, low, high = (known(estimate[key]) for key in ("value", "low", "high"))
    if value is None:
        return Cell(DASH)
    known_values = [x for x in (value, low, high) if x is not None]
    unit = estimate["unit"]
    if max(map(abs, known_values)) <= _ROUNDING * abs(size):
        return Cell(figure(0.0, unit), 0.0)
    scale, prefix, decimals = in_one_scale(known_values, unit)
    shown = f"{prefix.replace('u', 'µ')}{_KNOWN_UNITS.get(unit, unit)}"
    ends = (
        f"[{low / scale:,.{decimals}f}, {high / scale:,.{decimals}f}]"
        if low is not None and high is not None
        else ""
    )
    return Cell(f"{value / scale:+,.{decimals}f} {shown}".rstrip(), value, ends)


def plain(value: Any, unit: str = "", digits: int = 3) -> Cell:
    """A number of a table."""
    return Cell(figure(value, unit, digits), known(value))


def counted(value: Any) -> Cell:
    return Cell(count(value), known(value))


def tagged(word: str) -> Cell:
    """A word that is set off."""
    return Cell(word, tone=tone(word))


def card(
    title: str,
    estimate: Estimated | None,
    label: str,
    of: str,
    *,
    second: Estimated | None = None,
) -> Card:
    """A headline. ``of``: what it is per and how many; ``second``: the same in another unit."""
    other = ""
    if second is not None and known(second["value"]) is not None:
        other = f"{value_of(second)} {ends_of(second)}".rstrip()
    return Card(title, value_of(estimate), other, certainty(estimate), label, tone(label), of)


def listed(values: Any) -> str:
    found = [str(value) for value in values or ()]
    return ", ".join(found) if found else DASH


def given(value: Any) -> str:
    """Whatever a manifest holds, as text; a dash for nothing."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}" if math.isfinite(value) else DASH
    return str(value)


def _micro(text: str) -> str:
    head, _, unit = text.rpartition(" ")
    return f"{head} µ{unit[1:]}" if head and len(unit) > 1 and unit[0] == "u" else text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
