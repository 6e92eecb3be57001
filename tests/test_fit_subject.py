"""Which runs may be fitted together: each once, of one board at one clock and cap, of one profile."""

from __future__ import annotations

from typing import Any

import pytest
from test_fit import alone, lengths

from analysis.fit import FitError, fit
from analysis.run import Run

PROFILE = {"gpu": {"active_w": {"value": 190.0}}, "efficiency": {"compute": {"value": 0.5}}}


def served(*, profile: dict[str, Any] | None = None, begun: str = "1", **hardware: Any) -> Run:
    server = {"kind": "embedded", "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
    scenario = {"server": {"hardware": hardware}}
    told = server if profile is None else {**server, "profile": profile}
    s, g = lengths(20)
    return alone(s, g, server=told, scenario=scenario, anchors={"wall_utc": begun})


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ({"sm_clock_mhz": 1200.0}, "differ in SM clock in MHz none and 1200"),
        ({"power_cap_w": 350.0}, "differ in power cap in W none and 350"),
    ],
)
def test_a_board_at_another_clock_or_cap_is_another_board(hardware: dict[str, float], said: str) -> None:
    with pytest.raises(FitError, match=said):
        fit([served(), served(**hardware, begun="2")])
    assert fit([served(**hardware), served(**hardware, begun="2")]).requests == 40


def test_a_calibrated_board_is_not_the_tables() -> None:
    other = {**PROFILE, "gpu": {"active_w": {"value": 200.0}}}
    with pytest.raises(FitError, match=r"differ in board profile none and [0-9a-f]{8}$"):
        fit([served(), served(profile=PROFILE, begun="2")])
    with pytest.raises(FitError, match=r"differ in board profile [0-9a-f]{8} and [0-9a-f]{8}$"):
        fit([served(profile=other), served(profile=PROFILE, begun="2")])
    renamed = {**PROFILE, "calibration": {"residuals": [1]}}  # the same constants, told of otherwise
    assert fit([served(profile=renamed), served(profile=PROFILE, begun="2")]).requests == 40


def test_a_run_given_twice_is_refused() -> None:
    with pytest.raises(FitError, match="expected each run once, got made again"):
        fit([served(), served()])
