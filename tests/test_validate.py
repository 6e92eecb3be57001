"""Validation: the same load on the emulator, against the run it is of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from embedded_runs import POWER, SERVER, run

from analysis.attribution.weights import weights_of
from analysis.calibrate.again import serve_again
from analysis.calibrate.validation import validate
from analysis.floor import physical_floor
from analysis.run import load_run
from analysis.served import gpu_of, profile_served
from loadgen.cli import main
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.hardware import Efficiency
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import read_profile, write_profile


def loaded(folder, name, load, gpu="h100-sxm", **server):
    scenario = {
        "name": name,
        "seed": 9,
        "server": SERVER | {"gpu": gpu} | server,
        "load": load | {"warmup_requests": 1},
        "prompts": {"source": "synthetic", "max_new_tokens": 64},
        "power": POWER,
    }
    return run(scenario, folder)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board unlike the table's."""
    file = tmp_path_factory.mktemp("board") / "slow.json"
    gpu = replace(GPUS["h100-sxm"], active_w=260.0, context_idle_w=90.0, tail_w=90.0)
    write_profile(file, Profile(gpu, Efficiency(compute=0.4, bandwidth=0.6), "h100-sxm"))
    return str(file)


@pytest.fixture(scope="module")
def poisson(board, tmp_path_factory):
    load = {"pattern": "poisson", "rate_rps": 3.0, "requests": 150}
    return load_run(loaded(tmp_path_factory.mktemp("poisson"), "poisson", load, board))


def test_the_right_board_leaves_nothing(poisson, board):
    """The run's own board on the emulator: stamps' microseconds are left, and the counter's edges."""
    found = validate(poisson, gpu=board)
    assert (found.label, found.requests, found.left_out) == ("simulated", 150, 0)
    for pair in found.per_request:
        assert pair.size.value < 2e-4
        assert pair.size.n >= 140
    by_name = {r.name: r for r in found.residuals}
    assert abs(by_name["ttft p50"].error) < 2e-4
    assert abs(by_name["tpot p50"].error) < 2e-4
    assert abs(by_name["requests a second"].error) < 1e-4
    assert abs(by_name["GPU J per request"].error) < 5e-3
    assert by_name["e2e p50"].inside is not False


def test_the_board_of_the_run_is_the_default(poisson, board):
    assert validate(poisson) == validate(poisson, gpu=board)


def test_a_run_keeps_the_profile_it_was_simulated_with(poisson, board, tmp_path):
    """Afterwards the file may change or go; its board was once looked up anew."""
    file = tmp_path / "mine.json"
    file.write_bytes(Path(board).read_bytes())
    made = load_run(
        loaded(tmp_path, "alone", {"pattern": "closed_loop", "requests": 5, "max_in_flight": 1}, str(file))
    )
    before, floor = validate(made), physical_floor(made, 10.0, 1)
    write_profile(file, Profile(GPUS["l4"], Efficiency(), "l4"))
    assert validate(made) == before
    file.unlink()
    assert validate(made) == before
    assert physical_floor(made, 10.0, 1) == floor
    assert profile_served(made) == read_profile(board)


@pytest.mark.parametrize("sm_clock_mhz", [None, 900.0])
def test_a_row_weighs_what_its_own_board_takes(board, tmp_path, sm_clock_mhz):
    """Weights once took the default kernels at full clock, here 1.3 and 1.4 times too fast."""
    load = {"pattern": "closed_loop", "requests": 10, "max_in_flight": 1}
    alone = load_run(loaded(tmp_path, "alone", load, board, hardware={"sm_clock_mhz": sm_clock_mhz}))
    tariff = weights_of(alone, 90.0).time_s
    ok = alone.ok[alone.ok["output_tokens"] > 1]
    tpot_s = (ok["done_s"] - ok["first_s"]) / (ok["output_tokens"] - 1)
    context = ok["prompt_tokens"] + (ok["output_tokens"] - 2) / 2
    predicted_s = tariff.step + tariff.token + tariff.context * context
    assert np.abs(predicted_s / tpot_s - 1).max() < 1e-3


def test_the_wrong_board_shows(poisson):
    """The table's H100 reads weights in 3/4 of the time and computes prompts in 8/11."""
    found = validate(poisson, gpu="h100-sxm")
    by_name = {r.name: r for r in found.residuals}
    assert by_name["ttft p50"].error < -0.15
    assert by_name["tpot p50"].error < -0.10
    assert abs(by_name["GPU J per request"].error) > 0.02
    [ttft, tpot, _] = found.per_request
    assert ttft.bias.value < -0.15
    assert tpot.bias.value < -0.10


def test_measured_figures_are_the_run_s_own(poisson):
    found = {r.name: r for r in validate(poisson).residuals}
    ok = poisson.ok
    ttft = (ok["first_s"] - ok["sent_s"]).to_numpy(dtype=float)
    assert found["ttft p95"].measured.value == pytest.approx(np.quantile(ttft, 0.95), rel=1e-9)
    assert found["tokens a second"].measured.value == pytest.approx(ok["output_tokens"].sum() / poisson.end_s)
    watts = found["GPU mean power"].measured.value
    assert watts * poisson.end_s / len(ok) == pytest.approx(
        found["GPU J per request"].measured.value, rel=1e-9
    )


def test_a_closed_loop_is_served_with_its_cap(board, tmp_path):
    load = {"pattern": "closed_loop", "requests": 40, "max_in_flight": 1}
    alone = load_run(loaded(tmp_path, "alone", load, board))
    again = serve_again(alone)
    assert again.served.most_in_flight == 1
    assert [p.size.value < 2e-4 for p in validate(alone).per_request] == [True, True, True]


def test_failed_requests_are_in_neither_side(poisson):
    requests = poisson.requests.copy()
    requests.loc[requests.index[:5], "status"] = "timeout"
    found = validate(replace(poisson, requests=requests))
    assert (found.requests, found.left_out) == (145, 5)
    assert not [r for r in found.residuals if "GPU" in r.name]
    assert "5 requests did not succeed" in found.no_energy


def test_requests_of_several_records_are_in_neither_side(poisson):
    """Found: more rows were looked up than were served."""
    twice = pd.concat([poisson.requests, poisson.requests.iloc[[3, 8]]], ignore_index=True)
    found = validate(replace(poisson, requests=twice))
    assert (found.requests, found.left_out) == (len(poisson.requests) - 2, 4)


def test_a_real_server_s_run_names_its_slots_and_model(poisson):
    """As if from a url: no board, no scheduler, no prompts for a prefix cache."""
    nothing = dict.fromkeys(("gpu", "profile", "scheduler"))
    facts = poisson.manifest["server"] | nothing | {"kind": "llama.cpp", "limits": {}}
    real = replace(poisson, manifest=dict(poisson.manifest) | {"server": facts, "gpus": []})
    with pytest.raises(ConfigError, match="the run names no board of the table: say which with --gpu"):
        validate(real)
    narrow = serve_again(real, gpu="h100-sxm", settings=["launcher.max_num_seqs=1"])
    wide = serve_again(real, gpu="h100-sxm")
    assert narrow.deployment.launch.scheduling == "vllm"
    assert np.nanmax(narrow.served.e2e_s) > 2 * np.nanmax(wide.served.e2e_s)
    assert "prefix cache" in validate(real, gpu="h100-sxm").notes[-1]


def test_a_run_without_successes_is_refused(poisson):
    none = poisson.requests.assign(status="error")
    with pytest.raises(ConfigError, match="none of its requests succeeded"):
        validate(replace(poisson, requests=none))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "h100-sxn"], "; did you mean 'h100-sxm'?"),
        (["--set", "launcher.max_num_seq=3"], "did you mean 'max_num_seqs'?"),
        (["--set", "launcher.max_num_seqs=0"], "--set launcher.max_num_seqs:"),
        (["--set", "max_num_seqs=3"], "expected launcher.KEY=VALUE"),
        (["--model", "qwen2.5-14"], "; did you mean 'qwen2.5-14b'?"),
    ],
)
def test_a_mistake_is_one_line(poisson, flags, said, capsys):
    assert main(["validate", str(poisson.path), *flags]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_the_verb_prints_both_sides(poisson, capsys):
    assert main(["validate", str(poisson.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [first] = [r for r in told["residuals"] if r["name"] == "ttft p50"]
    assert told["label"] == "simulated" and abs(first["error"]) < 2e-4
    assert main(["validate", str(poisson.path)]) == 0
    said = capsys.readouterr().out
    assert f"{1e3 * first['measured']['value']:.3g} ms" in said and "GPU J per request" in said


def test_a_profile_s_board_is_known_to_the_floors(poisson, board):
    """A run on a profile is judged by that board's own idle power; with neither it nor its file, by none."""
    gpu = gpu_of(poisson)
    assert gpu is not None
    assert (gpu.id, gpu.context_idle_w) == ("h100-sxm", 90.0)
    assert main(["lint", str(poisson.path)]) == 0
    moved = poisson.manifest["server"] | {"gpu": f"{board}.gone.json", "profile": None}
    assert gpu_of(replace(poisson, manifest=dict(poisson.manifest) | {"server": moved})) is None
