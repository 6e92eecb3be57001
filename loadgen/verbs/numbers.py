"""Types of flags that take numbers of a range."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MOST_TOKENS = 10**9
MOST_SEQUENCES = 10**6


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes whole numbers of a range."""
    expected = f"a whole number from {least} to {most}" if most is not None else f"a whole number >= {least}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse
