"""Hardware profiles: what is written is read, and what cannot be used is refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from loadgen.config import read_yaml
from loadgen.emulation import constant_lengths, simulate
from loadgen.emulation.jobs import Jobs
from loadgen.errors import ConfigError
from loadgen.launch import Launch
from loadgen.physics.boards import GPUS
from loadgen.physics.hardware import Efficiency
from loadgen.physics.profile import Fitted, Profile, relative_uncertainty
from loadgen.physics.profile_file import as_object, find_board, profile_of, read_profile, write_profile
from loadgen.scenario_file import load_scenario, validate
from loadgen.server.deployment import Deployment

H100 = Profile(GPUS["h100-sxm"], Efficiency(), "h100-sxm")
TOLD = {"compute": 0.5, "context_idle_w": 60.0}
INTERVALS = {
    "compute": Fitted(0.48, 0.53, "measured", (0,)),
    "context_idle_w": Fitted(59.0, 61.0, "measured", (0,)),
}


def calibrated() -> Profile:
    made = H100.with_fitted(TOLD, INTERVALS, "calibrated to a run")
    return replace(made, label="measured", runs=({"name": "a-run"},), calibration={"times": {"n": 7}})


@pytest.mark.parametrize("profile", [*(Profile(g, Efficiency(), g.id) for g in GPUS.values()), calibrated()])
def test_what_is_written_is_read(profile, tmp_path):
    write_profile(tmp_path / "p.json", profile)
    assert read_profile(tmp_path / "p.json") == profile


def test_every_constant_of_a_board_stands_in_the_file_with_its_origin():
    told = as_object(calibrated())
    numeric = {f.name for f in fields(H100.gpu)} - {"id", "name", "sources", "uncertainty"}
    assert set(told["gpu"]) == numeric
    assert set(told["efficiency"]) == {f.name for f in fields(Efficiency)} - {"sources", "uncertainty"}
    for constant in (*told["gpu"].values(), *told["efficiency"].values()):
        assert constant["source"]
    assert told["gpu"]["context_idle_w"] == {
        "value": 60.0,
        "source": "calibrated to a run",
        "relative_uncertainty": pytest.approx(1 / 59),
        "low": 59.0,
        "high": 61.0,
        "label": "measured",
        "runs": [0],
    }
    assert told["gpu"]["active_w"]["label"] is None


def test_levels_below_a_fitted_power_follow_it():
    """The table's bare idle, 71.8 W, is above the 60 W that a run saw with a model loaded."""
    gpu = calibrated().gpu
    assert (gpu.bare_idle_w, gpu.context_idle_w, gpu.tail_w) == (60.0, 60.0, 60.0)


def test_an_uncertainty_covers_the_wider_side_of_its_interval():
    assert relative_uncertainty(10.0, 8.0, 11.0) == pytest.approx(0.25)
    assert relative_uncertainty(10.0, 9.9, 12.0) == pytest.approx(0.2)
    assert relative_uncertainty(0.0, 0.0, 1.0) == 0.0
    assert relative_uncertainty(1.0, 0.0, 2.0) == relative_uncertainty(1e-9, 0.0, 1.0) == 9.0


def test_an_id_and_a_path_name_a_board(tmp_path):
    assert find_board("l4") == (GPUS["l4"], Efficiency())
    write_profile(tmp_path / "p.json", calibrated())
    gpu, efficiency = find_board(str(tmp_path / "p.json"))
    assert (gpu.context_idle_w, efficiency.compute) == (60.0, 0.5)
    assert profile_of("l4").base == "l4"


def test_an_unknown_board_is_refused_with_the_near_one():
    with pytest.raises(ConfigError) as refused:
        find_board("h100-sxn", place="--gpu")
    text = str(refused.value)
    assert text.startswith("--gpu: expected one of h100-sxm,")
    assert text.endswith("got h100-sxn; did you mean 'h100-sxm'?")
    assert "\n" not in text


def test_the_emulator_serves_on_a_profile(tmp_path):
    """A board that costs twice the host's time a step takes that much longer for each token."""
    slow = replace(H100, efficiency=replace(Efficiency(), graph_overhead_s=5e-3))
    write_profile(tmp_path / "slow.json", slow)
    jobs = Jobs(np.zeros(1), np.zeros(1), constant_lengths(1, 100, 11))
    boards = ("h100-sxm", str(tmp_path / "slow.json"))
    took = [simulate(Deployment(Launch(gpu=gpu)), jobs).tpot_s[0] for gpu in boards]
    assert took[1] - took[0] == pytest.approx(2.5e-3, rel=1e-9)


def test_what_a_profile_leaves_out_is_its_base_s(tmp_path):
    file = tmp_path / "p.json"
    mine = {"value": 0.4, "source": "a data sheet"}
    write(file, {"base": "l4", "id": "mine", "efficiency": {"compute": mine}})
    gpu, efficiency = find_board(str(file))
    assert gpu == replace(GPUS["l4"], id="mine")
    assert efficiency.compute == 0.4
    assert efficiency.bandwidth == Efficiency().bandwidth


def write(file, keys):
    file.write_text(json.dumps({"schema": 1, "kind": "loadgen-hardware-profile"} | keys))


def constant(value, **keys):
    return {"value": value, "source": "a test"} | keys


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "loadgen-model"}, 'kind: expected loadgen-hardware-profile, got "loadgen-model"'),
        ({"schema": 2}, "schema: expected 1, what this version reads, got 2"),
        ({"base": "h100-sxn"}, "; did you mean 'h100-sxm'?"),
        ({"base": "l4", "gpus": {}}, "gpus: expected one of schema, kind"),
        ({"base": "l4", "gpu": {"tpd_w": constant(3)}}, "; did you mean 'tdp_w'?"),
        (
            {"base": "l4", "gpu": {"tdp_w": 300}},
            "gpu.tdp_w: expected an object with value and source, got 300",
        ),
        ({"base": "l4", "gpu": {"tdp_w": {"value": 300}}}, "gpu.tdp_w.source: expected a text"),
        (
            {"base": "l4", "gpu": {"tdp_w": constant(-1)}},
            "gpu.tdp_w.value: expected a number above 0, got -1",
        ),
        ({"base": "l4", "gpu": {"tdp_w": constant(True)}}, "expected a number above 0, got true"),
        ({"base": "l4", "gpu": {"tdp_w": constant(10**400)}}, "expected a number above 0, got 1000000"),
        ({"base": "l4", "gpu": {"active_w": constant(99.0)}}, "gpu.active_w: expected at most gpu.tdp_w, 72"),
        ({"base": "l4", "gpu": {"peak_flop_per_s": constant({})}}, "an object of rates by number format"),
        (
            {"base": "l4", "efficiency": {"compute": constant(1.2)}},
            "a share of the peak, above 0 and at most 1",
        ),
        ({"base": "l4", "efficiency": {"graph_max_rows": constant(1.5)}}, "expected a whole number, got 1.5"),
        (
            {"base": "l4", "efficiency": {"compute": constant(0.5, label="guessed", low=0.4, high=0.6)}},
            'efficiency.compute.label: expected measured, simulated or null, got "guessed"',
        ),
        (
            {"base": "l4", "efficiency": {"compute": constant(0.5, label="measured", low=0.6, high=0.7)}},
            "expected a value within low 0.6 and high 0.7, got 0.5",
        ),
        (
            {
                "base": "l4",
                "efficiency": {"compute": constant(0.5, label="measured", low=0, high=1, runs=[0])},
            },
            "efficiency.compute.runs: expected places in runs",
        ),
        ({"id": "mine", "name": "Mine"}, "gpu.memory_bytes: expected a value, as there is no base"),
        ({"base": "l4", "id": "a b"}, "id: expected letters, digits, dots and dashes"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_in_one_line(keys, said, tmp_path):
    file = tmp_path / "p.json"
    write(file, keys)
    with pytest.raises(ConfigError) as refused:
        find_board(str(file))
    text = str(refused.value)
    assert text.startswith(str(file))
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": NaN}', "", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_refused(text, tmp_path):
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected a"):
        find_board(str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read: No such file"):
        find_board(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_profile(tmp_path / "no" / "p.json", H100)


def test_a_scenario_names_a_profile_beside_it(tmp_path, monkeypatch):
    """Paths of a file count from it, wherever one stands; a flag's from where one stands."""
    write_profile(tmp_path / "mine.json", profile_of("l4"))
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nserver: {gpu: mine.json}\nload: {pattern: all_at_once, requests: 1}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_scenario(file).server.gpu == str(tmp_path / "mine.json")
    flagged = read_yaml(file)
    flagged.assign("server.gpu", "mine.json", "--set server.gpu")
    assert validate(flagged, tmp_path).server.gpu == "mine.json"
