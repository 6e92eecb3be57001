"""Numbers as the tables of errata print them."""

from __future__ import annotations

from math import floor, log10


def number(value: float) -> str:
    """Four digits, without an exponent from 0.001 to 999,999."""
    if value == 0:
        return "0"
    size = floor(log10(abs(float(f"{value:.3e}"))))
    if not -3 <= size < 6:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{_trim(mantissa)}e{int(exponent)}"
    whole = float(value).is_integer()
    return _trim(f"{value:,.{0 if whole else max(0, 3 - size)}f}")


def quantity(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}".strip()


def _trim(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
