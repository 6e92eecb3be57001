"""Systematic parts of an energy's uncertainty, combined as the GUM does and kept apart from sampling.

A sensor's gain, the clock between server and meter and the readings at the window's edges
are the same for every request of a run: more requests do not average them out, so they enter
no sampling interval. Each is a half-width with a distribution, turned into a standard
uncertainty (JCGM 100:2008, GUM, 4.3.7 and 4.3.9); independent ones are combined in quadrature
(5.1.2, eq. 10) and multiplied by a stated coverage factor (6.2.1).

A gain is a property of a board: it cancels in the ratio of two runs as far as the same boards,
by UUID, have the same share of both energies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

COVERAGE_FACTOR = 2.0
"""About 95 % for a normal combination; conservative where one rectangle dominates (its 95 % is 1.65)."""

Distribution = Literal["rectangular", "triangular", "normal"]
_DIVISORS: Mapping[str, float] = {
    "rectangular": math.sqrt(3.0),  # GUM 4.3.7: nothing known but the bounds
    "triangular": math.sqrt(6.0),  # GUM 4.3.9
    "normal": 2.0,  # a stated 95 % bound, GUM 4.3.4
}


@dataclass(frozen=True, slots=True)
class Component:
    """One systematic part: ``value`` is off by at most ``half_width``, in its unit."""

    name: str
    half_width: float
    distribution: Distribution = "rectangular"

    def __post_init__(self) -> None:
        if not (self.half_width >= 0 and math.isfinite(self.half_width)):
            raise ValueError(f"{self.name}: expected a half-width >= 0, got {self.half_width}")

    @property
    def standard(self) -> float:
        """Standard uncertainty."""
        return self.half_width / _DIVISORS[self.distribution]


@dataclass(frozen=True, slots=True)
class Systematic:
    """Combined systematic uncertainty of a value.

    ``standard``: root of the sum of squares; ``expanded`` = ``factor`` x ``standard``, in ``unit``.
    ``missing``: parts that are not known and so not in it.
    """

    unit: str
    standard: float
    factor: float
    components: tuple[Component, ...]
    missing: tuple[str, ...] = ()

    @property
    def expanded(self) -> float:
        return self.factor * self.standard

    def describe(self) -> str:
        parts = ", ".join(
            f"{c.name} {c.half_width:.3g} {self.unit} {c.distribution} (u {c.standard:.3g})"
            for c in self.components
        )
        said = (
            f"+-{self.expanded:.3g} {self.unit} systematic (k = {self.factor:g}): {parts or 'no part known'}"
        )
        return said + (f"; not known: {', '.join(self.missing)}" if self.missing else "")


@dataclass(frozen=True, slots=True)
class Board:
    """A measured board's share: ``gain_error``: largest relative error of its sensor, None if not known."""

    uuid: str
    energy_j: float
    gain_error: float | None


def combine(
    unit: str,
    components: Sequence[Component],
    *,
    missing: Sequence[str] = (),
    factor: float = COVERAGE_FACTOR,
) -> Systematic:
    """Independent components in quadrature (GUM eq. 10 with sensitivities 1)."""
    standard = math.sqrt(math.fsum(c.standard**2 for c in components))
    return Systematic(unit, standard, factor, tuple(components), tuple(missing))


def of_energy(
    boards: Sequence[Board],
    *,
    clock_bound_s: float | None = None,
    power_step_w: float | None = None,
    edges_j: float | None = None,
    factor: float = COVERAGE_FACTOR,
) -> Systematic:
    """Systematic uncertainty of the energy of a window, summed over independent boards, joules.

    ``clock_bound_s``: how far the meter's clock may be off; it moves both edges alike, so it
    costs at most the bound times ``power_step_w``, the difference of the power at the two
    edges. ``edges_j``: what the readings at the edges leave open (`integral`'s bound).
    Either may be unknown and is then named as missing.
    """
    parts, missing = [], []
    for board in boards:
        if board.gain_error is None:
            missing.append(f"gain of {board.uuid}")
        else:
            parts.append(Component(f"gain of {board.uuid}", board.gain_error * abs(board.energy_j)))
    if clock_bound_s is None or power_step_w is None:
        missing.append("clock")
    else:
        parts.append(Component("clock", abs(clock_bound_s * power_step_w)))
    if edges_j is None:
        missing.append("window edges")
    else:
        parts.append(Component("window edges", edges_j))
    return combine("J", parts, missing=missing, factor=factor)


def of_ratio(
    above: Sequence[Board],
    below: Sequence[Board],
    others_above: Systematic | None = None,
    others_below: Systematic | None = None,
    *,
    factor: float = COVERAGE_FACTOR,
) -> Systematic:
    """Relative systematic uncertainty of energy(above) / energy(below), unit 1.

    First order: d ln ratio = sum_i (share_above,i - share_below,i) gain_i over boards i by
    UUID (GUM eq. 13 with correlation 1 for a board's own gain). With one and the same board
    it is 0. ``others_*``: parts in joules that do not cancel (clock, edges), of each run.
    """
    total = {id(run): math.fsum(b.energy_j for b in run) for run in (above, below)}
    if not (total[id(above)] > 0 and total[id(below)] > 0):
        raise ValueError("expected energies > 0 on both sides of the ratio")
    shares: dict[str, float] = {}
    gains: dict[str, float | None] = {}
    for run, sign in ((above, 1.0), (below, -1.0)):
        for board in run:
            shares[board.uuid] = shares.get(board.uuid, 0.0) + sign * board.energy_j / total[id(run)]
            known = gains.get(board.uuid)
            gains[board.uuid] = board.gain_error if known is None else max(known, board.gain_error or 0.0)
    parts, missing = [], []
    for uuid, share in shares.items():
        gain = gains[uuid]
        if abs(share) < 1e-12:
            continue
        if gain is None:
            missing.append(f"gain of {uuid}")
        else:
            parts.append(Component(f"gain of {uuid}", gain * abs(share)))
    for run, others in ((above, others_above), (below, others_below)):
        for part in others.components if others is not None else ():
            parts.append(Component(part.name, part.half_width / total[id(run)], part.distribution))
        missing.extend(others.missing if others is not None else ())
    return combine("1", parts, missing=missing, factor=factor)
