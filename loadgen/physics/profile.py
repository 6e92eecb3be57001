"""A hardware profile: one board and its kernels' efficiency, every constant with its origin.

What a run was calibrated to is ``measured`` or ``simulated``; every other constant keeps the
source it has in the table. `loadgen.physics.profile_file` finds, reads and writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from loadgen.physics.hardware import Efficiency, Gpu, in_order

Label = Literal["measured", "simulated"]

TEXTS = ("id", "name")
_TABLES = ("sources", "uncertainty")
GPU_FIELDS = tuple(f.name for f in fields(Gpu) if f.name not in TEXTS + _TABLES)
EFFICIENCY_FIELDS = tuple(f.name for f in fields(Efficiency) if f.name not in _TABLES)
_WIDEST = 9.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a calibrated constant is from: a 95 % interval, and runs by their place in ``Profile.runs``."""

    low: float
    high: float
    label: Label
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A board as known after looking at it. ``base``: the id of the table it started from.

    ``label``: what the calibrated constants are, None without any. ``runs``: the runs they are from
    (name, hash, ...). ``fitted``: those constants of ``gpu`` and ``efficiency`` that a run told.
    ``calibration``: what the fit has to say of itself, as JSON.
    """

    gpu: Gpu
    efficiency: Efficiency
    base: str | None = None
    label: Label | None = None
    runs: tuple[Mapping[str, Any], ...] = ()
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def with_fitted(self, values: Mapping[str, float], fitted: Mapping[str, Fitted], source: str) -> Profile:
        """The same with constants replaced by what was fitted; ``source`` says by what.

        The relative uncertainty becomes the wider side of each interval. Powers stay in order: the
        levels below a fitted one are lowered to it where they would stand above it.
        """
        parts: dict[str, Any] = {}
        for part, names in (("gpu", GPU_FIELDS), ("efficiency", EFFICIENCY_FIELDS)):
            old: Any = getattr(self, part)
            own = [name for name in names if name in values]
            wide = {n: relative_uncertainty(values[n], fitted[n].low, fitted[n].high) for n in own}
            parts[part] = replace(
                old,
                **{name: values[name] for name in own},
                sources=dict(old.sources) | dict.fromkeys(own, source),
                uncertainty=dict(old.uncertainty) | wide,
            )
        parts["gpu"] = in_order(parts["gpu"], self.gpu.tail_w - self.gpu.context_idle_w)
        return replace(self, **parts, fitted={**self.fitted, **fitted})


def relative_uncertainty(value: float, low: float, high: float) -> float:
    """The half-width on a logarithmic scale that covers both sides of an interval; as in ``Constant``.

    At most 9, a factor of ten: an interval from 0 has no end on that scale.
    """
    if not value > 0:
        return 0.0
    below = value / low if low > 0 else math.inf
    return min(max(high / value, below, 1.0) - 1.0, _WIDEST)
