"""From the energy of one request to a service: energy, cost and CO2e a day and a year.

Scaling laws, for n requests a day of E watt-hours each:

    energy = n E PUE      cost = energy x price      CO2e = energy x grid intensity

Pure functions over Estimates: an interval is scaled with its value, and stays
the sampling interval of the run that it comes from. Requests a day, PUE, price
and intensity are taken as given; nobody's are assumed. A figure whose input was
not given is missing, with the reason. Labels are kept: what is estimated or
simulated for one request is estimated or simulated for a year of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from analysis.stats import missing, scaled
from loadgen.errors import ConfigError
from loadgen.types import Estimate

DAYS_PER_YEAR = 365.0
HOUSEHOLD_KWH_PER_YEAR = 4255.0
"""A French household's electricity, from the study's report, section 4.5 (fournisseurs-electricite.com)."""
LED_W = 5.0
"""The LED bulb of the study's report, section 3.2."""
_PER_REQUEST_WH = {"Wh": 1.0, "J": 1.0 / 3600.0}


class Grid(NamedTuple):
    """Mean carbon intensity of a grid over a year, and who says so."""

    region: str
    g_per_kwh: float
    year: int | None
    source: str


_EMBER = (
    "Ember, Yearly Electricity Data, life-cycle emissions of generation (CC BY), as redistributed in "
    "The Green Web Foundation's co2.js, data/output/average-intensities.json, commit 03b5e45"
)
GRIDS: dict[str, Grid] = {
    code: Grid(region, g_per_kwh, year, _EMBER)
    for code, region, g_per_kwh, year in (
        ("NO", "Norway", 30.08, 2023),
        ("CH", "Switzerland", 34.84, 2023),
        ("SE", "Sweden", 40.7, 2023),
        ("FR", "France", 56.04, 2023),
        ("FI", "Finland", 79.16, 2023),
        ("CA", "Canada", 161.43, 2022),
        ("ES", "Spain", 174.05, 2023),
        ("GB", "United Kingdom", 237.59, 2023),
        ("EU", "European Union", 243.83, 2023),
        ("NL", "Netherlands", 267.62, 2023),
        ("IE", "Ireland", 290.81, 2023),
        ("DE", "Germany", 380.95, 2023),
        ("US", "United States", 385.98, 2022),
        ("SG", "Singapore", 474.0, 2022),
        ("world", "World", 485.99, 2022),
        ("JP", "Japan", 512.81, 2022),
        ("CN", "China", 585.82, 2022),
        ("PL", "Poland", 661.93, 2023),
        ("IN", "India", 705.13, 2022),
    )
}
"""A help to choose from, not a default: a year's average of generation, blind to the hour and to trade."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one component of a system spends on one request: J or Wh, and how that is known.

    ``label`` is one word, or several joined by " + " where parts were added.
    """

    name: str
    label: str
    energy: Estimate


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how much: each given by the user, None where not.

    ``pue``: energy of the data centre over that of its computers, >= 1; None
    leaves the figures those of the computers alone. ``price_per_kwh`` in
    ``currency``. Raises ConfigError for a value that cannot be.
    """

    requests_per_day: float
    pue: float | None = None
    price_per_kwh: float | None = None
    currency: str = "EUR"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        check("requests_per_day", self.requests_per_day, self.requests_per_day > 0, "> 0")
        if self.pue is not None:
            check("pue", self.pue, self.pue >= 1, ">= 1")
        if self.price_per_kwh is not None:
            check("price_per_kwh", self.price_per_kwh, self.price_per_kwh >= 0, ">= 0")
        if self.grid is not None:
            check("grid.g_per_kwh", self.grid.g_per_kwh, self.grid.g_per_kwh >= 0, ">= 0")


@dataclass(frozen=True, slots=True)
class Footprint:
    """A part, or parts added, at a service's scale. ``label`` is that of the energy.

    ``households``: how many a day's energy would supply; ``led_minutes``: how
    long the energy of one request lights the bulb, PUE left out, as in the report.
    """

    name: str
    label: str
    energy_kwh_per_day: Estimate
    energy_kwh_per_year: Estimate
    cost_per_day: Estimate
    cost_per_year: Estimate
    co2e_kg_per_day: Estimate
    co2e_kg_per_year: Estimate
    households: Estimate
    led_minutes: Estimate


def grid(code: str) -> Grid:
    """A row of the table. Raises ConfigError for a code it does not have."""
    if code not in GRIDS:
        known = ", ".join(GRIDS)
        raise ConfigError(f"grid: no row {code!r}; known: {known}; or give the intensity itself, in g/kWh")
    return GRIDS[code]


def described(place: Grid) -> str:
    """``56.04 gCO2e/kWh, France, 2023``."""
    year = "" if place.year is None else f", {place.year}"
    return f"{place.g_per_kwh:g} gCO2e/kWh, {place.region}{year}"


def per_request_wh(part: Part) -> Estimate:
    """The part's energy in Wh. Raises ConfigError when it is none, or below 0."""
    energy = part.energy
    if energy.unit not in _PER_REQUEST_WH:
        raise ConfigError(f"{part.name}: expected the energy of a request in J or Wh, got {energy.unit}")
    for value in (energy.value, energy.low, energy.high):
        if value is not None:
            check(f"{part.name}: energy", value, value >= 0, f">= 0 {energy.unit}")
    return scaled(energy, _PER_REQUEST_WH[energy.unit], "Wh")


def together(parts: Sequence[Part], name: str = "total") -> Part:
    """The sum of parts, labelled with every label in it ("measured + estimated").

    The interval's ends are the sums of the ends: exact when the parts rise and
    fall together, as parts of one run do, and too wide when they do not. Without
    a value for every part there is no sum; without every interval, no interval.
    """
    if not parts:
        raise ConfigError(f"{name}: expected at least one part to add")
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError(f"{name}: a part stands twice in {', '.join(part.name for part in parts)}")
    labels = dict.fromkeys(word for part in parts for word in part.label.split(" + "))
    label = " + ".join(labels)
    energies = [per_request_wh(part) for part in parts]
    lacking = [part.name for part, energy in zip(parts, energies, strict=True) if energy.value is None]
    levels = {energy.level for energy in energies}
    if lacking:
        return Part(name, label, missing("Wh", f"no energy of {', '.join(lacking)}"))
    one_level = len(levels) == 1
    total = Estimate(
        value=_sum([energy.value for energy in energies]),
        unit="Wh",
        low=_sum([energy.low for energy in energies]) if one_level else None,
        high=_sum([energy.high for energy in energies]) if one_level else None,
        level=min(levels),
        n=min(energy.n for energy in energies),
        method=f"sum of {', '.join(part.name for part in parts)}",
    )
    return Part(name, label, total)


def footprint(
    part: Part,
    setting: Setting,
    *,
    household_kwh_per_year: float = HOUSEHOLD_KWH_PER_YEAR,
    led_w: float = LED_W,
) -> Footprint:
    """The part's energy at the setting's scale. Raises ConfigError for inputs that cannot be."""
    check("household_kwh_per_year", household_kwh_per_year, household_kwh_per_year > 0, "> 0")
    check("led_w", led_w, led_w > 0, "> 0")
    request_wh = per_request_wh(part)
    day_kwh = _day_kwh(request_wh, setting)
    price, place = setting.price_per_kwh, setting.grid
    cost, co2e = (
        missing(setting.currency, "no price was given"),
        missing("kg CO2e", "no grid intensity was given"),
    )
    if price is not None:
        cost = _times(day_kwh, price, setting.currency, f"{price:g} {setting.currency}/kWh")
    if place is not None:
        co2e = _times(day_kwh, place.g_per_kwh / 1e3, "kg CO2e", described(place))
    return Footprint(
        name=part.name,
        label=part.label,
        energy_kwh_per_day=day_kwh,
        energy_kwh_per_year=_year(day_kwh),
        cost_per_day=cost,
        cost_per_year=_year(cost),
        co2e_kg_per_day=co2e,
        co2e_kg_per_year=_year(co2e),
        households=scaled(day_kwh, DAYS_PER_YEAR / household_kwh_per_year, "households"),
        led_minutes=scaled(request_wh, 60.0 / led_w, "min"),
    )


def _day_kwh(request_wh: Estimate, setting: Setting) -> Estimate:
    pue = 1.0 if setting.pue is None else setting.pue
    overhead = "no PUE: the computers alone" if setting.pue is None else f"PUE {pue:g}"
    day = scaled(request_wh, setting.requests_per_day * pue / 1e3, "kWh")
    return replace(day, method=f"{day.method}; x {setting.requests_per_day:g} requests a day, {overhead}")


def _year(day: Estimate) -> Estimate:
    return scaled(day, DAYS_PER_YEAR, day.unit)


def _times(estimate: Estimate, factor: float, unit: str, what: str) -> Estimate:
    return replace(scaled(estimate, factor, unit), method=f"{estimate.method}; x {what}")


def _sum(values: Sequence[float | None]) -> float | None:
    """None when any is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def check(name: str, value: float, fits: bool, expected: str) -> None:
    """Raises ConfigError naming value and expectation unless it fits and is finite."""
    if not fits or not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number {expected}, got {value:g}")
