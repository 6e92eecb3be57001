"""Energy of a request at the scale of a service, against theory.md's table of derived facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.macro import GRIDS, Footprint, Grid, Part, Setting, footprint, grid, per_request_wh, together
from analysis.sci import NEVER_SEEN, NO_CLAIM, Embodied, lines, statement
from analysis.stats import missing
from loadgen.errors import ConfigError
from loadgen.types import Estimate

MILLION = Setting(1e6)
FRANCE = grid("FR")


def energy(
    value: float | None, low: float | None = None, high: float | None = None, unit: str = "Wh"
) -> Estimate:
    return Estimate(value, unit, low, high, 0.95, 10_000, "mean")


GPU = Part("gpu", "measured", energy(0.202, 0.200, 0.204))
CPU = Part("cpu", "measured", energy(0.024, 0.023, 0.025))
RAM = Part("ram", "estimated", energy(0.019, 0.018, 0.020))


def value(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


# --- theory.md, section 3 ---


@pytest.mark.parametrize(
    ("request_wh", "day_kwh", "households"),
    [(0.12, 120.0, 10.29), (1.1e-3, 1.1, 0.0944), (0.202, 202.0, 17.3), (0.245, 245.0, 21.0)],
)
def test_a_million_requests_a_day_as_the_report_counts_them(
    request_wh: float, day_kwh: float, households: float
) -> None:
    found = footprint(Part("gpu", "measured", energy(request_wh)), MILLION)
    assert value(found.energy_kwh_per_day) == pytest.approx(day_kwh)
    assert value(found.households) == pytest.approx(households, rel=5e-3)
    assert value(found.energy_kwh_per_year) == pytest.approx(365 * day_kwh)


def test_ratio_of_the_reports_two_settings_is_109() -> None:
    before, after = (footprint(Part("gpu", "measured", energy(x)), MILLION) for x in (0.12, 1.1e-3))
    assert value(before.energy_kwh_per_day) / value(after.energy_kwh_per_day) == pytest.approx(
        109.1, abs=0.05
    )


def test_a_thank_you_lights_a_5_w_led_for_almost_three_minutes() -> None:
    whole = together([GPU, CPU, RAM])
    assert value(whole.energy) == pytest.approx(0.245)
    assert value(footprint(whole, MILLION).led_minutes) == pytest.approx(2.94)


def test_joules_are_read_as_joules() -> None:
    part = Part("gpu", "simulated", energy(3600.0, 1800.0, 7200.0, unit="J"))
    found = per_request_wh(part)
    assert (found.value, found.low, found.high, found.unit) == (1.0, 0.5, 2.0, "Wh")


# --- price, grid, PUE ---


def test_cost_and_co2e_by_hand() -> None:
    setting = Setting(1e6, pue=1.25, price_per_kwh=0.20, currency="EUR", grid=Grid("here", 400.0, 2024, "me"))
    found = footprint(Part("gpu", "measured", energy(0.12, 0.10, 0.14)), setting)
    assert value(found.energy_kwh_per_day) == pytest.approx(150.0)
    assert (found.cost_per_day.unit, value(found.cost_per_day)) == ("EUR", pytest.approx(30.0))
    assert value(found.cost_per_year) == pytest.approx(10_950.0)
    assert (found.co2e_kg_per_day.unit, value(found.co2e_kg_per_day)) == ("kg CO2e", pytest.approx(60.0))
    assert value(found.co2e_kg_per_year) == pytest.approx(21_900.0)
    assert found.co2e_kg_per_day.low == pytest.approx(50.0)
    assert found.co2e_kg_per_day.high == pytest.approx(70.0)
    assert "PUE 1.25" in found.energy_kwh_per_day.method
    assert "400 gCO2e/kWh, here, 2024" in found.co2e_kg_per_year.method
    assert value(found.led_minutes) == pytest.approx(1.44)  # 0.12 Wh / 5 W, PUE left out


def test_what_was_not_given_is_missing_with_the_reason() -> None:
    found = footprint(GPU, MILLION)
    assert found.cost_per_day.value is None
    assert "no price was given" in found.cost_per_year.method
    assert found.co2e_kg_per_year.value is None
    assert "no grid intensity was given" in found.co2e_kg_per_day.method
    assert "no PUE: the computers alone" in found.energy_kwh_per_day.method


def test_a_free_or_carbon_free_kwh_is_zero_not_missing() -> None:
    found = footprint(GPU, Setting(1.0, price_per_kwh=0.0, grid=Grid("dam", 0.0, None, "me")))
    assert found.cost_per_day.value == 0.0
    assert found.co2e_kg_per_day.value == 0.0


def test_an_unavailable_energy_stays_unavailable_with_its_reason() -> None:
    found = footprint(
        Part("gpu", "measured", missing("Wh", "the sensor was dead")), Setting(1e6, grid=FRANCE)
    )
    for name in ("energy_kwh_per_day", "co2e_kg_per_year", "households", "led_minutes"):
        estimate: Estimate = getattr(found, name)
        assert estimate.value is None
        assert "the sensor was dead" in estimate.method


def test_labels_level_and_n_are_kept() -> None:
    found = footprint(replace(RAM, energy=replace(RAM.energy, level=0.9)), MILLION)
    assert found.label == "estimated"
    assert (found.energy_kwh_per_year.level, found.energy_kwh_per_year.n) == (0.9, 10_000)


def test_a_sum_names_every_label_and_adds_the_ends_of_its_intervals() -> None:
    whole = together([GPU, CPU, RAM])
    assert whole.label == "measured + estimated"
    assert (whole.energy.low, whole.energy.high) == (pytest.approx(0.241), pytest.approx(0.249))
    assert together([GPU, CPU]).label == "measured"
    assert together([together([GPU, RAM], "node0"), CPU]).label == "measured + estimated"


def test_a_sum_lacks_what_a_part_lacks() -> None:
    bare = Part("ram", "estimated", energy(0.019))
    assert together([GPU, bare]).energy.low is None
    assert together([GPU, bare]).energy.value == pytest.approx(0.221)
    gone = Part("cpu", "measured", missing("Wh", "no RAPL"))
    assert together([GPU, gone]).energy.value is None
    assert "no energy of cpu" in together([GPU, gone]).energy.method
    other = replace(CPU, energy=replace(CPU.energy, level=0.9))
    mixed = together([GPU, other]).energy
    assert (mixed.low, mixed.high, mixed.level) == (None, None, 0.9)


def test_grids_are_cited_dated_and_ordered_as_the_world_is() -> None:
    assert all(
        "Ember" in row.source and row.year in (2022, 2023) and row.g_per_kwh > 0 for row in GRIDS.values()
    )
    # Our World in Data (Ember), 2023, rounded: France 56, Germany 381, Ireland 291, Finland 79
    assert {code: round(GRIDS[code].g_per_kwh) for code in ("FR", "DE", "IE", "FI")} == {
        "FR": 56,
        "DE": 381,
        "IE": 291,
        "FI": 79,
    }
    assert GRIDS["NO"].g_per_kwh < GRIDS["EU"].g_per_kwh < GRIDS["world"].g_per_kwh < GRIDS["IN"].g_per_kwh


# --- properties ---

SCALES: dict[str, Callable[[Setting, float], Setting]] = {
    "requests_per_day": lambda s, x: replace(s, requests_per_day=s.requests_per_day * x),
    "pue": lambda s, x: replace(s, pue=(s.pue or 1.0) * x),
    "price_per_kwh": lambda s, x: replace(s, price_per_kwh=(s.price_per_kwh or 0.0) * x),
    "grid": lambda s, x: replace(s, grid=FRANCE._replace(g_per_kwh=FRANCE.g_per_kwh * x)),
}
RISES = {
    "requests_per_day": {"energy_kwh_per_day", "cost_per_day", "co2e_kg_per_day", "households"},
    "pue": {"energy_kwh_per_day", "cost_per_day", "co2e_kg_per_day", "households"},
    "price_per_kwh": {"cost_per_day"},
    "grid": {"co2e_kg_per_day"},
}
FIGURES = ("energy_kwh_per_day", "cost_per_day", "co2e_kg_per_day", "households", "led_minutes")


def figures(found: Footprint) -> dict[str, float]:
    return {name: value(getattr(found, name)) for name in FIGURES}


@given(name=st.sampled_from(sorted(SCALES)), factor=st.floats(1.01, 100), request_wh=st.floats(1e-6, 1e3))
def test_each_input_raises_its_own_figures_in_proportion_and_no_other(
    name: str, factor: float, request_wh: float
) -> None:
    setting = Setting(1e5, pue=1.2, price_per_kwh=0.3, grid=FRANCE)
    part = Part("gpu", "measured", energy(request_wh))
    before, after = figures(footprint(part, setting)), figures(footprint(part, SCALES[name](setting, factor)))
    for figure in FIGURES:
        expected = factor if figure in RISES[name] else 1.0
        assert after[figure] == pytest.approx(before[figure] * expected)


@given(request_wh=st.floats(0, 1e3), below=st.floats(0, 1), above=st.floats(0, 1), pue=st.floats(1, 3))
def test_intervals_keep_their_relative_width_and_hold_their_value(
    request_wh: float, below: float, above: float, pue: float
) -> None:
    low, high = request_wh * (1 - below), request_wh * (1 + above)
    setting = Setting(1e6, pue=pue, price_per_kwh=0.2, grid=FRANCE)
    found = footprint(Part("gpu", "measured", energy(request_wh, low, high)), setting)
    for name in FIGURES:
        estimate: Estimate = getattr(found, name)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= value(estimate) <= estimate.high
        assert estimate.low == pytest.approx(value(estimate) * (1 - below), rel=1e-12, abs=1e-12)
        assert estimate.high == pytest.approx(value(estimate) * (1 + above), rel=1e-12, abs=1e-12)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_a_footprint_of_a_sum_is_the_sum_of_footprints(energies: list[float]) -> None:
    parts = [Part(f"gpu{i}", "measured", energy(x)) for i, x in enumerate(energies)]
    setting = Setting(3e5, pue=1.3, price_per_kwh=0.2, grid=FRANCE)
    whole = figures(footprint(together(parts), setting))
    each = [figures(footprint(part, setting)) for part in parts]
    for name in FIGURES:
        assert whole[name] == pytest.approx(math.fsum(f[name] for f in each))


# --- SCI ---


def test_score_by_hand_operational_and_embodied() -> None:
    # 0.245 Wh x PUE 1.2 = 2.94e-4 kWh x 400 g/kWh = 0.1176 g; a 1,500 kg server over 4 years of days is
    # 1027.4 g a day, over 1e5 requests 0.010274 g
    setting = Setting(1e5, pue=1.2, grid=Grid("here", 400.0, 2024, "me"))
    server = Embodied(1500.0, 4.0, "an LCA")
    found = statement([GPU, CPU, RAM], setting, embodied=server)
    assert value(found.energy_kwh) == pytest.approx(2.94e-4)
    assert value(found.operational_g) == pytest.approx(0.1176)
    assert value(found.embodied_g) == pytest.approx(0.0102740, rel=1e-5)
    assert value(found.score_g) == pytest.approx(0.1278740, rel=1e-6)
    assert found.score_g.low == pytest.approx(0.241e-3 * 1.2 * 400 + 0.0102740, rel=1e-5)
    assert found.label == "measured + estimated"


def test_time_share_as_the_specification_works_it_out() -> None:
    # SCI 1.1.0: 1,000 kg over four years, reserved for an hour: about 28 g
    assert Embodied(1000.0, 4.0, "spec", hours_per_day=1.0).g_per_day == pytest.approx(28.5, abs=0.05)
    half = Embodied(1000.0, 4.0, "spec", hours_per_day=1.0, resource_share=0.5)
    assert half.g_per_day == pytest.approx(14.27, abs=0.01)


def test_per_token_is_per_request_over_its_tokens() -> None:
    setting = Setting(1e5, pue=1.2, grid=FRANCE)
    server = Embodied(1500.0, 4.0, "an LCA")
    request = statement([GPU], setting, embodied=server)
    token = statement([GPU], setting, embodied=server, unit="token", units_per_request=1252.0)
    assert value(token.score_g) == pytest.approx(value(request.score_g) / 1252)
    assert token.functional_unit == "token"


def test_statement_names_boundary_sources_and_gaps_and_claims_no_conformity() -> None:
    found = statement([GPU, RAM], Setting(1e6))
    text = "\n".join(lines(found))
    assert "boundary: gpu (measured), ram (estimated)" in text
    assert "missing: energy of the CPU" in text
    assert "missing: the data centre's overhead (no PUE was given)" in text
    assert "missing: the grid's intensity" in text
    assert "missing: embodied emissions of the hardware" in text
    assert all(f"missing: {gap}" in text for gap in NEVER_SEEN)
    assert lines(found)[-1] == NO_CLAIM
    assert "no claim of conformity" in NO_CLAIM
    assert found.score_g.value is None
    assert lines(found)[0] == "score: unavailable: no grid intensity was given per request"


def test_a_score_needs_its_embodied_part_and_the_operational_part_stands_alone() -> None:
    found = statement([GPU, CPU, RAM], Setting(1e6, pue=1.2, grid=FRANCE))
    assert found.score_g.value is None
    assert "no embodied emissions were given" in found.score_g.method
    assert value(found.operational_g) == pytest.approx(0.245e-3 * 1.2 * 56.04)
    text = "\n".join(lines(found))
    assert "grid intensity: 56.04 gCO2e/kWh, France, 2023 (Ember" in text
    assert "operational: 0.0165 [0.0162, 0.0167] gCO2e, from 0.000294 [" in text
    assert "a yearly average was taken" in text
    assert "no PUE" not in text


def test_an_unavailable_part_leaves_no_score_and_is_named() -> None:
    gone = Part("cpu", "measured", missing("Wh", "no RAPL"))
    found = statement([GPU, gone], Setting(1e6, grid=FRANCE), embodied=Embodied(1.0, 1.0, "x"))
    assert found.score_g.value is None
    assert any("energy of cpu" in gap and "no RAPL" in gap for gap in found.gaps)


@given(
    embodied_kg=st.floats(0, 1e5),
    more=st.floats(0.1, 1e4),
    years=st.floats(0.5, 20),
    intensity=st.floats(0, 1500),
)
def test_score_rises_with_energy_intensity_and_embodied_and_falls_with_life(
    embodied_kg: float, more: float, years: float, intensity: float
) -> None:
    def score(kg: float, life: float, g: float, wh: float) -> float:
        setting = Setting(1e4, pue=1.1, grid=Grid("here", g, None, "me"))
        part = Part("gpu", "measured", energy(wh))
        return value(statement([part], setting, embodied=Embodied(kg, life, "x")).score_g)

    base = score(embodied_kg, years, intensity, 0.2)
    assert score(embodied_kg + more, years, intensity, 0.2) > base
    assert score(embodied_kg, years, intensity + more, 0.2) > base
    assert score(embodied_kg, years, intensity, 0.2 + more) >= base
    assert score(embodied_kg, 2 * years, intensity, 0.2) <= base


# --- refusals ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setting(0.0), "requests_per_day: expected a finite number > 0, got 0"),
        (lambda: Setting(-1.0), "requests_per_day"),
        (lambda: Setting(math.inf), "requests_per_day: expected a finite number > 0, got inf"),
        (lambda: Setting(1.0, pue=0.9), "pue: expected a finite number >= 1, got 0.9"),
        (lambda: Setting(1.0, pue=math.nan), "pue: expected a finite number >= 1, got nan"),
        (lambda: Setting(1.0, price_per_kwh=-0.1), "price_per_kwh: expected a finite number >= 0, got -0.1"),
        (lambda: Setting(1.0, grid=Grid("x", -1.0, None, "y")), "grid.g_per_kwh"),
        (lambda: grid("XX"), "grid: no row 'XX'; known: NO, CH"),
        (lambda: footprint(Part("gpu", "measured", energy(1.0, unit="kWh")), MILLION), "in J or Wh, got kWh"),
        (
            lambda: footprint(Part("gpu", "measured", energy(-1.0)), MILLION),
            "gpu: energy: expected a finite number",
        ),
        (lambda: footprint(Part("gpu", "measured", energy(math.nan)), MILLION), "gpu: energy"),
        (lambda: footprint(Part("gpu", "measured", energy(1.0, -0.1, 2.0)), MILLION), "gpu: energy"),
        (lambda: footprint(GPU, MILLION, led_w=0.0), "led_w: expected a finite number > 0, got 0"),
        (lambda: footprint(GPU, MILLION, household_kwh_per_year=0.0), "household_kwh_per_year"),
        (lambda: together([]), "total: expected at least one part to add"),
        (lambda: together([GPU, GPU]), "total: a part stands twice in gpu, gpu"),
        (lambda: Embodied(-1.0, 1.0, "x"), "embodied.total_kg"),
        (lambda: Embodied(1.0, 0.0, "x"), "embodied.lifespan_years"),
        (lambda: Embodied(1.0, 1.0, "x", hours_per_day=25.0), "embodied.hours_per_day"),
        (lambda: Embodied(1.0, 1.0, "x", hours_per_day=0.0), "embodied.hours_per_day"),
        (lambda: Embodied(1.0, 1.0, "x", resource_share=1.5), "embodied.resource_share"),
        (lambda: Embodied(1.0, 1.0, " "), "embodied.source: expected whose assessment this is"),
        (lambda: statement([GPU], MILLION, unit="token"), "expected the mean number of tokens of a request"),
        (lambda: statement([GPU], MILLION, unit="token", units_per_request=0.0), "units_per_request"),
        (
            lambda: statement([GPU], MILLION, units_per_request=5.0),
            "expected none for the unit request, got 5",
        ),
        (lambda: statement([], MILLION), "expected at least one part"),
    ],
)
def test_refusals_name_the_input_and_what_was_expected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
