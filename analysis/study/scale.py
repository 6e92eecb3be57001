"""A run's energy per success at the size of a service: footprints by part, and the SCI-style statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.macro import Footprint, Grid, Part, Setting, footprint, grid, together
from analysis.sci import Embodied, Statement, statement
from loadgen.errors import ConfigError

GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Service:
    """What the user says of the service: nothing of it is assumed.

    ``grid``: a code of `analysis.macro.GRIDS`; or ``grid_g_per_kwh``, its intensity. ``embodied_*``:
    as in `analysis.sci.Embodied`, all three or none. Raises ConfigError for what cannot be.
    """

    requests_per_day: float
    pue: float | None = None
    price_per_kwh: float | None = None
    currency: str = "EUR"
    grid: str | None = None
    grid_g_per_kwh: float | None = None
    embodied_kg: float | None = None
    embodied_years: float | None = None
    embodied_source: str | None = None
    embodied_hours_per_day: float = 24.0
    embodied_share: float = 1.0
    setting: Setting = field(init=False)
    embodied: Embodied | None = field(init=False)

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid_g_per_kwh is not None:
            raise ConfigError("grid: expected a code or an intensity, got both")
        place = None if self.grid is None else grid(self.grid)
        if self.grid_g_per_kwh is not None:
            place = Grid(GIVEN, self.grid_g_per_kwh, None, "as given")
        priced = Setting(self.requests_per_day, self.pue, self.price_per_kwh, self.currency, place)
        object.__setattr__(self, "setting", priced)
        object.__setattr__(self, "embodied", self._embodied())

    def _embodied(self) -> Embodied | None:
        kg, years, source = self.embodied_kg, self.embodied_years, self.embodied_source
        told = {"kg": kg, "years": years, "source": source}
        lacking = [name for name, value in told.items() if value is None]
        if len(lacking) == len(told) and self.embodied_hours_per_day == 24 and self.embodied_share == 1:
            return None
        if kg is None or years is None or source is None:
            missing = ", ".join(lacking)
            raise ConfigError(f"embodied: expected kg, years and source together; missing: {missing}")
        return Embodied(kg, years, source, self.embodied_hours_per_day, self.embodied_share)


@dataclass(frozen=True, slots=True)
class Macro:
    """``footprints``: of each part whose energy is known, and of all together when there are several.

    ``statements``: per request, and per output token where their number is known. ``reason``: why
    there is nothing.
    """

    service: Service
    footprints: tuple[Footprint, ...]
    statements: tuple[Statement, ...]
    reason: str | None = None


def macro(service: Service, parts: Sequence[Part], tokens_per_request: float | None) -> Macro:
    """The service's figures. ``parts``: energy of one success each; ``tokens_per_request``: mean output."""
    known = [part for part in parts if part.energy.value is not None]
    if not known:
        why = "; ".join(f"{part.name}: {part.energy.method}" for part in parts)
        return Macro(service, (), (), f"the energy of a success is not known ({why or 'no part was read'})")
    wholes = [*known, together(known)] if len(known) > 1 else known
    setting = service.setting
    statements = [statement(known, setting, embodied=service.embodied)]
    if tokens_per_request:
        per_token = statement(
            known,
            setting,
            embodied=service.embodied,
            unit="output token",
            units_per_request=tokens_per_request,
        )
        statements.append(per_token)
    return Macro(service, tuple(footprint(part, setting) for part in wholes), tuple(statements))


def as_object(found: Macro) -> dict[str, Any]:
    """``service``, ``footprints``, ``statements``, ``reason``; estimates as objects."""
    service = {
        key: value for key, value in asdict(found.service).items() if key not in ("setting", "embodied")
    }
    return {
        "service": service,
        "footprints": [asdict(part) for part in found.footprints],
        "statements": [asdict(one) for one in found.statements],
        "reason": found.reason,
    }
