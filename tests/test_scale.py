"""A service as its flags describe it, and what cannot be."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from analysis.macro import Part
from analysis.stats import exact, missing
from analysis.study.scale import Service, as_object, macro
from loadgen.errors import ConfigError
from loadgen.verbs import service as service_flags


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--requests-per-day", "1e6", "--grid", "FR"], {"requests_per_day": 1e6, "grid": "FR"}),
        (["--pue", "1.2"], "needs --requests-per-day"),
    ],
)
def test_flags_say_what_a_service_is(words: list[str], expected: Any) -> None:
    parser = argparse.ArgumentParser()
    service_flags.add_flags(parser)
    args = parser.parse_args(words)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            service_flags.given(args)
    else:
        assert service_flags.given(args) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grid": "XX"}, "known: NO"),
        ({"pue": 0.5}, "pue"),
        ({"embodied_kg": 100.0}, "together"),
        ({"grid": "FR", "grid_g_per_kwh": 50.0}, "got both"),
    ],
)
def test_a_service_that_cannot_be_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Service(1e6, **given)


def test_every_flag_of_a_service_is_one_of_its_fields() -> None:
    parser = argparse.ArgumentParser()
    service_flags.add_flags(parser)
    words = [
        "--requests-per-day",
        "1e6",
        "--pue",
        "1.2",
        "--price-per-kwh",
        "0.2",
        "--currency",
        "USD",
        "--grid-intensity",
        "300",
    ]
    words += [
        "--embodied-kg",
        "150",
        "--embodied-years",
        "4",
        "--embodied-hours-per-day",
        "12",
        "--embodied-share",
        "0.5",
    ]
    words += ["--embodied-source", "maker's sheet"]
    service = Service(**(service_flags.given(parser.parse_args(words)) or {}))
    assert service.setting.grid is not None and service.setting.grid.g_per_kwh == 300.0
    # 150 kg over 4 years, half the day, half of the board.
    assert service.embodied is not None
    assert service.embodied.g_per_day == pytest.approx(150e3 / (4 * 365) / 4)


def test_parts_that_are_not_known_are_in_no_sum_and_named_as_gaps() -> None:
    parts = [Part("gpu", "measured", exact(36.0, "J", 10, "mean")), Part("cpu", "x", missing("J", "no RAPL"))]
    found = macro(Service(1000.0), parts, None)
    assert [f.name for f in found.footprints] == ["gpu"]
    assert found.footprints[0].energy_kwh_per_day.value == pytest.approx(0.01)
    assert "energy of the CPU" in found.statements[0].gaps
    nothing = macro(Service(1000.0), parts[1:], None)
    assert nothing.footprints == () and "no RAPL" in str(nothing.reason)
    assert as_object(nothing)["reason"] == nothing.reason
