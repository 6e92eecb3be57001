"""Random boards: what the hardware may be like, as far as its constants are known."""

from __future__ import annotations

from dataclasses import fields, replace
from math import exp, log1p
from typing import TypeVar

import numpy as np

from loadgen.physics.hardware import Efficiency, Gpu, in_order
from loadgen.types import Floats

T = TypeVar("T", Gpu, Efficiency)

_TWO_SIDED_95 = 1.959964
"""Standard deviations of a normal within which 95 % lie."""
_LARGEST_DEVIATION = 3.0
TAIL = 0.05
"""Share of the draws that a range leaves out at either end."""
FEWEST_FOR_QUANTILES = 19
"""Draws from which the quantiles at `TAIL` are order statistics; of fewer the range is of all."""
_NOT_CONSTANTS = {"id", "name", "sources", "uncertainty"}


def draw(gpu: Gpu, efficiency: Efficiency, rng: np.random.Generator) -> tuple[Gpu, Efficiency]:
    """One board and its kernels' efficiency, with every uncertain constant drawn anew.

    Log-normal around the nominal value, which is the median: the constants are
    positive scales, and a factor too high is as likely as a factor too low.
    ``sigma = ln(1 + r) / 1.96`` with r the relative uncertainty, so that 95 % of
    draws lie within value / (1 + r) to value (1 + r); truncated at 3 sigma, so
    that no efficiency reaches 1. Constants are drawn independently, although
    those of one fit compensate each other: an envelope over draws is rather too
    wide than too narrow. Order is restored from the top, ``active_w`` at most
    ``tdp_w`` and each lower level at most the next; the tail moves with the
    level it decays to. The spread between equal boards (``power_spread``) is the
    board's to apply and not part of this.

    Deterministic in ``rng``, from which every call takes the same number of
    deviates.
    """
    drawn = _perturb(gpu, rng)
    efficiency = _perturb(efficiency, rng)
    rise_w = (gpu.tail_w - gpu.context_idle_w) * (drawn.tail_w / gpu.tail_w)
    return in_order(drawn, rise_w), efficiency


def _perturb(constants: T, rng: np.random.Generator) -> T:
    changed: dict[str, float] = {}
    for field in fields(constants):
        if field.name in _NOT_CONSTANTS:
            continue
        deviation = min(max(float(rng.standard_normal()), -_LARGEST_DEVIATION), _LARGEST_DEVIATION)
        relative = constants.uncertainty[field.name]
        if relative:
            value = getattr(constants, field.name)
            changed[field.name] = value * exp(log1p(relative) / _TWO_SIDED_95 * deviation)
    return replace(constants, **changed)  # type: ignore[arg-type]


def range_of_draws(values: Floats) -> tuple[float, float]:
    """5 and 95 % of one figure over draws, (n,), in its unit; below 19 draws least and greatest.

    Order statistics k / (n + 1), type 6 of Hyndman and Fan (1996): one more draw falls between them
    as often as the levels say.
    """
    levels = (TAIL, 1 - TAIL) if len(values) >= FEWEST_FOR_QUANTILES else (0.0, 1.0)
    low, high = np.quantile(values, levels, method="weibull")
    return float(low), float(high)
