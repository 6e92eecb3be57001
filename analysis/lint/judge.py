"""Every rule put to a run. Nothing is hidden: an invalid run is still summarised, its verdict beside it.

The rules are those of "Is a run to be believed?" in `docs/lint.md`; each module here has
those of one subject.
"""

from __future__ import annotations

from collections.abc import Mapping

from analysis.energy import Part, PartEnergy
from analysis.lint import (
    boards,
    cache,
    client,
    completeness,
    floors,
    readings,
    sensor,
    sidecars,
    steady,
    tokens,
)
from analysis.lint.rule import Check, Verdict
from analysis.run import Run

CATALOGUE: tuple[Check, ...] = (
    *completeness.CHECKS,
    *client.CHECKS,
    *steady.CHECKS,
    *tokens.CHECKS,
    *cache.CHECKS,
    *readings.CHECKS,
    *floors.CHECKS,
    *sensor.CHECKS,
    *boards.CHECKS,
    *sidecars.CHECKS,
)
"""All rules, in the order in which a verdict has them."""


def judge(run: Run, parts: Mapping[Part, PartEnergy]) -> Verdict:
    """Applies every rule. ``parts``: the window's energies, as `analysis.energy.measure` gives."""
    gpu = parts.get("gpu")
    others = tuple(part for name, part in parts.items() if name != "gpu")
    return Verdict(
        (
            *completeness.rules(run, parts),
            *client.rules(run),
            *steady.rules(run, gpu),
            *tokens.rules(run),
            *cache.rules(run),
            *readings.rules(run, parts),
            *floors.rules(run, gpu),
            *sensor.rules(run, gpu, others),
            *boards.rules(run),
            *sidecars.rules(run),
        )
    )
