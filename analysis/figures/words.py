"""Words and numbers in figures: names made harmless, units with prefixes, values with intervals."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence

from analysis.run import Run
from analysis.stats import reason_of
from analysis.words import number
from loadgen.types import Estimate

LONGEST_NAME = 40
LINE_CHARS = 57


def wrapped(text: str, chars: int = LINE_CHARS) -> list[str]:
    """Lines of at most so many characters; a longer word is cut."""
    return textwrap.wrap(plain(text), chars)


def plain(text: str) -> str:
    """One line of printable text: what a name from a file may not do to a figure or its XML."""
    kept = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in str(text))
    return " ".join(kept.split())


def named(text: object, longest: int = LONGEST_NAME) -> str:
    """A name for an axis or a legend, shortened in the middle, where names of runs differ least."""
    line = plain(str(text)) or "unnamed"
    if len(line) <= longest:
        return line
    head = (longest - 1) * 2 // 3
    return f"{line[:head]}…{line[-(longest - 1 - head) :]}"


def count(n: int, noun: str) -> str:
    """``n = 10,000 noun``."""
    return f"n = {n:,} {noun}"


def labelled(label: str | None) -> str:
    """How the numbers came about, for the line under a title."""
    return label or "of unknown origin"


def origin(run: Run) -> str:
    """``measured``, or ``simulated``: what times and counts of a run are, by its server and its clock."""
    if run.virtual:
        return "simulated, virtual time"
    return "simulated server" if (run.manifest.get("server") or {}).get("kind") == "embedded" else "measured"


def prefixed(size: float, unit: str) -> tuple[float, str]:
    """What to multiply by, and the unit, so that ``size`` has 1 to 3 figures before the point."""
    if not (math.isfinite(size) and size > 0):
        return 1.0, unit
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if size >= 0.9995 * scale:
            return 1 / scale, prefix + unit
    return 1e9, "n" + unit


def span(estimate: Estimate, factor: float = 1.0, digits: int = 3) -> str:
    """``3.21 [3.18, 3.24]``, or the value alone; a dash when there is none."""
    if estimate.value is None:
        return "-"
    said = number(estimate.value * factor, digits)
    if estimate.low is None or estimate.high is None:
        return said
    return f"{said} [{number(estimate.low * factor, digits)}, {number(estimate.high * factor, digits)}]"


def why_no_interval(estimates: Sequence[Estimate]) -> str | None:
    """The reason that the first of these without an interval gives; None when all have one."""
    for estimate in estimates:
        if estimate.low is None or estimate.high is None:
            return reason_of(estimate.method)
    return None
