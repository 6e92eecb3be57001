"""The run's energy at the size of a service, with the prices and intensities that the user gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.report.blocks import Block, Cell, Column, Facts, Points, Prose, Section, Table
from analysis.report.subject import PART_NAMES, Subject
from analysis.report.words import cell, count, figure, given, known, tagged
from analysis.stats import reason_of

_FIGURES = (
    ("energy_kwh_per_day", "Energy a day"),
    ("energy_kwh_per_year", "Energy a year"),
    ("cost_per_day", "Cost a day"),
    ("cost_per_year", "Cost a year"),
    ("co2e_kg_per_day", "CO2e a day"),
    ("co2e_kg_per_year", "CO2e a year"),
    ("households", "Households that a day's energy would supply"),
    ("led_minutes", "Minutes that one request lights a 5 W LED"),
)


def service(subject: Subject) -> Section | None:
    """None unless a service was described."""
    found = subject.found["macro"]
    if found is None:
        return None
    asked = found["service"]
    blocks: list[Block] = [Facts(_given(asked), title="As given")]
    if found["reason"] is not None:
        blocks.append(Prose(f"No figures: {found['reason']}.", "warn"))
    elif found["footprints"]:
        blocks.append(_footprints(found["footprints"]))
    blocks += _statements(found["statements"])
    lead = (
        "Scaled linearly from the energy of one success; intervals are this run's sampling intervals. "
        "Whether a service of this size would batch, idle and fail like this run is not known from it."
    )
    return Section("service", "At the size of a service", blocks, lead)


def _given(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    price, intensity = known(asked["price_per_kwh"]), known(asked["grid_g_per_kwh"])
    grid = asked["grid"] if intensity is None else f"{figure(intensity)} g/kWh"
    return [
        ("Requests a day", count(asked["requests_per_day"])),
        ("PUE", given(asked["pue"]) if asked["pue"] is not None else "not given: the computers alone"),
        ("Price", "not given" if price is None else f"{figure(price)} {asked['currency']}/kWh"),
        ("Grid", given(grid) if grid else "not given"),
    ]


def _footprints(rows: Any) -> Table:
    columns = (
        Column("Figure"),
        *(Column(PART_NAMES.get(row["name"], str(row["name"])), True) for row in rows),
    )
    made = [[Cell("How it is known"), *(tagged(str(row["label"])) for row in rows)]]
    made += [[Cell(title), *(cell(row[key]) for row in rows)] for key, title in _FIGURES]
    note = "Household: 4,255 kWh a year. A dash: its input was not given, or the part is not known."
    return Table("Footprint of the service", columns, made, note, sortable=False)


def _statements(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not found:
        return []
    rows = [
        [Cell(title), *(_amount(one[key]) for one in found)]
        for key, title in (
            ("score_g", "Score"),
            ("operational_g", "Operational"),
            ("embodied_g", "Embodied"),
            ("energy_kwh", "Energy"),
        )
    ]
    first = found[0]
    columns = (Column("Statement"), *(Column(f"Per {one['functional_unit']}", True) for one in found))
    pairs = [
        ("Boundary", ", ".join(str(part) for part in first["boundary"])),
        ("Grid intensity", str(first["intensity"])),
        ("Embodied emissions", str(first["embodied"])),
        ("How it is known", str(first["label"])),
    ]
    gaps = dict.fromkeys(str(gap) for one in found for gap in one["gaps"])
    return [
        Table("Carbon intensity in the terms of SCI", columns, rows, _why(found), sortable=False),
        Facts(pairs),
        Points([*gaps], title="What the statement lacks"),
        Prose(str(first["disclaimer"]), "quiet"),
    ]


def _why(found: Sequence[Mapping[str, Any]]) -> str:
    """Why a score is a dash."""
    methods = (str(one["score_g"]["method"]) for one in found if known(one["score_g"]["value"]) is None)
    reasons = dict.fromkeys(reason_of(method) for method in methods)
    return f"No score: {'; '.join(reasons)}." if reasons else ""


def _amount(estimate: Mapping[str, Any]) -> Cell:
    """In watt hours, or in grams of a size to read."""
    value = abs(known(estimate["value"]) or 0.0)
    if estimate["unit"] == "kWh":
        factor, unit = 1e3, "Wh"
    else:
        factor, unit = next(((f, u) for least, f, u in _GRAMS if value >= least), _GRAMS[-1][1:])
    ends = {key: known(estimate[key]) for key in ("value", "low", "high")}
    scaled = {key: None if v is None else v * factor for key, v in ends.items()}
    return cell({**estimate, **scaled, "unit": unit})


_GRAMS = ((1.0, 1.0, "g"), (1e-3, 1e3, "mg"), (1e-6, 1e6, "\u00b5g"), (0.0, 1e9, "ng"))
