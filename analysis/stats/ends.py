"""The ends of an interval and how it came about, or why there is none and which run would have one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NEEDED = re.compile(r"about ([\d,]+) requests at this load")


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends, or neither; ``how`` goes into an estimate's method."""

    low: float | None
    high: float | None
    how: str


def none(why: str) -> Ends:
    """No interval, and the reason."""
    return Ends(None, None, f"no interval: {why}")


def needs(times: float, requests: int) -> str:
    """How long a run it takes, ``times`` one of so many ``requests`` (0: not known).

    Two figures, rounded up: a short run underrates its own slowness.
    """
    if not requests:
        return f"it takes a run at least about {times:.2g} times as long"
    coarse = 10 ** max(0, math.floor(math.log10(times * requests)) - 1)
    rounded = math.ceil(times * requests / coarse * (1 - 1e-9)) * coarse
    return f"it takes at least about {rounded:,} requests at this load"


def requests_needed(method: str) -> int | None:
    """The number in the sentence of `needs`, if a method has it."""
    found = _NEEDED.search(method)
    return None if found is None else int(found[1].replace(",", ""))
