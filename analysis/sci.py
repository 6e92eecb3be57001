"""A statement in the terms of Software Carbon Intensity, with what it leaves out.

    SCI = (E I + M) / R,   M = TE (TiR / EL) (RR / ToR)

E: energy of one functional unit, kWh, PUE included where known; I: the grid's
intensity, gCO2e/kWh, location-based; M: the share of the hardware's embodied
emissions; R: the functional unit (Green Software Foundation, SCI 1.1.0, published
as ISO/IEC 21031:2024). The draft SCI for AI (same foundation, sci-ai/SPEC.md)
has two scores, and asks of the consumer's that it cover the whole of runtime
operations, per token for a language model. What a load test sees is less than
that, and the statement says so; it claims conformity with neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analysis.macro import DAYS_PER_YEAR, Part, Setting, check, described, per_request_wh, together
from analysis.stats import missing, scaled
from loadgen.errors import ConfigError
from loadgen.types import Estimate

Unit = Literal["request", "output token", "token"]

NO_CLAIM = (
    "Written in the terms of the Software Carbon Intensity specification (ISO/IEC 21031:2024) and of the "
    "draft SCI for AI; this is no claim of conformity with either."
)
NEVER_SEEN = (
    "network, storage, gateways, monitoring and clients",
    "idle, spare and failed-over servers beyond the measured ones",
    "training, data preparation, integration and end of life (the provider's score of SCI for AI)",
)
"""What both specifications ask for and no run of a load generator contains."""
_HOURS_PER_DAY = 24.0


@dataclass(frozen=True, slots=True)
class Embodied:
    """Emissions of making and disposing of the hardware that the requests reserve.

    ``total_kg``: TE, of all of it; ``lifespan_years``: EL; ``hours_per_day``: of
    the time reserved; ``resource_share``: RR / ToR, above 0, at most 1;
    ``source``: whose life-cycle assessment. Raises ConfigError.
    """

    total_kg: float
    lifespan_years: float
    source: str
    hours_per_day: float = _HOURS_PER_DAY
    resource_share: float = 1.0

    def __post_init__(self) -> None:
        check("embodied.total_kg", self.total_kg, self.total_kg >= 0, ">= 0")
        check("embodied.lifespan_years", self.lifespan_years, self.lifespan_years > 0, "> 0")
        inside = 0 < self.hours_per_day <= _HOURS_PER_DAY
        check("embodied.hours_per_day", self.hours_per_day, inside, "above 0, at most 24")
        share = 0 < self.resource_share <= 1
        check("embodied.resource_share", self.resource_share, share, "above 0, at most 1")
        if not self.source.strip():
            raise ConfigError("embodied.source: expected whose assessment this is, got nothing")

    @property
    def g_per_day(self) -> float:
        """TE x TS x RS for one day, gCO2e."""
        time_share = self.hours_per_day / _HOURS_PER_DAY / (self.lifespan_years * DAYS_PER_YEAR)
        return 1e3 * self.total_kg * time_share * self.resource_share


@dataclass(frozen=True, slots=True)
class Statement:
    """One score with its boundary. Grams of CO2e per ``functional_unit``.

    ``score`` is operational + embodied, or missing with the reason when either is;
    ``gaps`` names everything that the boundary or the data lack.
    """

    functional_unit: Unit
    label: str
    boundary: tuple[str, ...]
    energy_kwh: Estimate
    intensity: str
    operational_g: Estimate
    embodied: str
    embodied_g: Estimate
    score_g: Estimate
    gaps: tuple[str, ...]
    disclaimer: str = NO_CLAIM


def statement(
    parts: Sequence[Part],
    setting: Setting,
    *,
    embodied: Embodied | None = None,
    unit: Unit = "request",
    units_per_request: float | None = None,
) -> Statement:
    """The score of the parts together, per ``unit``.

    ``units_per_request``: mean tokens of a request, needed for a unit other than
    the request. Raises ConfigError when it is missing or cannot be.
    """
    if unit == "request":
        if units_per_request is not None:
            raise ConfigError(
                f"units_per_request: expected none for the unit request, got {units_per_request:g}"
            )
        count = 1.0
    elif units_per_request is None:
        raise ConfigError(f"units_per_request: expected the mean number of {unit}s of a request")
    else:
        check("units_per_request", units_per_request, units_per_request > 0, "> 0")
        count = units_per_request
    whole = together(parts)
    pue = 1.0 if setting.pue is None else setting.pue
    energy_kwh = scaled(per_request_wh(whole), pue / 1e3 / count, "kWh")
    grid = setting.grid
    if grid is None:
        operational = missing("gCO2e", "no grid intensity was given", energy_kwh.n)
        intensity = "not given"
    else:
        operational = scaled(energy_kwh, grid.g_per_kwh, "gCO2e")
        intensity = f"{described(grid)} ({grid.source})"
    return Statement(
        functional_unit=unit,
        label=whole.label,
        boundary=tuple(f"{part.name} ({part.label})" for part in parts),
        energy_kwh=energy_kwh,
        intensity=intensity,
        operational_g=operational,
        embodied="not given" if embodied is None else f"{embodied.total_kg:g} kgCO2e ({embodied.source})",
        embodied_g=_embodied_g(embodied, setting, count),
        score_g=_score_g(operational, _embodied_g(embodied, setting, count)),
        gaps=_gaps(parts, setting, embodied),
    )


def lines(found: Statement) -> list[str]:
    """The statement as sentences, the score first, the disclaimer last."""
    return [
        f"score: {_shown(found.score_g)} per {found.functional_unit}",
        f"operational: {_shown(found.operational_g)}, from {_shown(found.energy_kwh)} ({found.label})",
        f"embodied: {_shown(found.embodied_g)}, of {found.embodied}",
        f"functional unit: one {found.functional_unit}",
        f"boundary: {', '.join(found.boundary)}",
        f"grid intensity: {found.intensity}",
        *(f"missing: {gap}" for gap in found.gaps),
        found.disclaimer,
    ]


def _embodied_g(embodied: Embodied | None, setting: Setting, count: float) -> Estimate:
    if embodied is None:
        return missing("gCO2e", "no embodied emissions were given")
    share_g = embodied.g_per_day / setting.requests_per_day / count
    method = f"TE x TS x RS over {setting.requests_per_day:g} requests a day"
    return Estimate(share_g, "gCO2e", None, None, 0.95, 0, method)


def _score_g(operational: Estimate, embodied: Estimate) -> Estimate:
    if operational.value is None:
        return operational
    if embodied.value is None:
        return embodied
    shift = embodied.value

    def moved(value: float | None) -> float | None:
        return None if value is None else value + shift

    return replace(
        operational,
        value=moved(operational.value),
        low=moved(operational.low),
        high=moved(operational.high),
        method=f"{operational.method}; + embodied, {embodied.method}",
    )


def _gaps(parts: Sequence[Part], setting: Setting, embodied: Embodied | None) -> tuple[str, ...]:
    names = {part.name for part in parts}
    gaps = [f"energy of the {name.upper()}" for name in ("gpu", "cpu", "ram") if name not in names]
    gaps += [f"energy of {part.name}: {part.energy.method}" for part in parts if part.energy.value is None]
    if setting.pue is None:
        gaps.append("the data centre's overhead (no PUE was given)")
    if setting.grid is None:
        gaps.append("the grid's intensity")
    else:
        gaps.append("the intensity's course over the day, and at the margin: a yearly average was taken")
    if embodied is None:
        gaps.append("embodied emissions of the hardware")
    return (*gaps, *NEVER_SEEN)


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return estimate.method
    interval = (
        "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    )
    return f"{estimate.value:.3g}{interval} {estimate.unit}"
