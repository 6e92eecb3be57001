"""What a comparison found. Every B is set against the reference, the first side.

Sides come in the order given; what is said of each against the reference has one entry
fewer, in the order of ``sides[1:]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.compare.headlines import Kind
from analysis.compare.listed import Listed
from analysis.compare.load import SameLoad
from analysis.compare.sides import Side
from analysis.stats.pairs import ALPHA
from analysis.stats.systematic import Systematic
from loadgen.types import Estimate


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure of every side.

    ``unit``: SI. ``label``: measured, estimated, simulated or unavailable; where the sides are not of one
    kind all are named in their order, ``measured / simulated``. ``values``: of each side. ``differences``
    (B - A) and ``ratios`` (B / A), with ``p`` of no difference and ``p_adjusted`` (Holm, over all tested
    headlines of all sides; None where nothing is tested). ``methods``: paired or not, and why.
    """

    name: str
    title: str
    unit: str
    kind: Kind
    label: str
    values: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    ratios: tuple[Estimate, ...]
    p: tuple[float | None, ...]
    p_adjusted: tuple[float | None, ...]
    methods: tuple[str, ...]

    def told(self, i: int) -> bool:
        """Whether ``sides[i + 1]`` is told from the reference after Holm's correction."""
        p = self.p_adjusted[i]
        return p is not None and p <= ALPHA


@dataclass(frozen=True, slots=True)
class Against:
    """What is said of one side against the reference.

    ``shared``: how the requests were recognised as the same, or why not; ``paired``: whether they are.
    ``load``: did both bear the same load. ``systematic``: relative, of the ratio of GPU energies, in no
    interval; a sentence where it cannot be had. ``conclusion``: what may be quoted; ``notes`` limit it.
    """

    name: str
    paired: bool
    shared: str
    load: SameLoad
    systematic: Systematic | str
    conclusion: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``sides[0]`` is the reference. ``against``: one entry for each other side.

    ``headlines``: those that any side has. ``listed``: what differs in hardware, server and
    configuration. ``notes``: of the whole, such as a run given twice.
    """

    sides: tuple[Side, ...]
    headlines: tuple[Headline, ...]
    against: tuple[Against, ...]
    listed: tuple[Listed, ...]
    notes: tuple[str, ...]
    tolerance: float

    @property
    def valid(self) -> bool:
        """Whether every run compared is valid."""
        return all(side.valid for side in self.sides)

    def headline(self, name: str) -> Headline | None:
        """By its name, such as ``energy_per_request_j``; None when no side has it."""
        return next((h for h in self.headlines if h.name == name), None)
