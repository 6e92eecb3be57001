"""Calibration: constants of a hidden board are found from what a client and NVML's counter see."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from embedded_runs import POWER, SERVER, run
from rich.console import Console

from analysis.calibrate import calibrate
from analysis.calibrate.calibration import _rising
from analysis.calibrate.estimate import Answer, Question, answer
from analysis.calibrate.observed import observe
from analysis.calibrate.powers import NAMES as POWERS
from analysis.calibrate.subject import subject_of
from analysis.calibrate.times import NAMES as TIMES
from analysis.calibrate.times import constants
from analysis.calibrate.view import render
from analysis.calibrate.work import work_of
from analysis.run import load_run
from loadgen.cli import main
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.breakdown import Mix
from loadgen.physics.formats import DTYPES
from loadgen.physics.hardware import Efficiency
from loadgen.physics.models import MODELS, transformer_from
from loadgen.physics.profile import Fitted, Profile
from loadgen.physics.profile_file import read_profile, write_profile
from loadgen.physics.transformer import StepModel

HIDDEN = {"compute": 0.41, "bandwidth": 0.66, "graph_overhead_s": 3.6e-3, "eager_overhead_s": 13e-3}
HIDDEN |= {"context_idle_w": 92.0, "active_w": 245.0, "memory_weight": 0.47}
HIDDEN |= {"compute_weight": 0.78, "compute_knee": 0.21}
"""Of the hidden board: each further from the table's than its uncertainty says."""


def hidden_board() -> Profile:
    powers = {name: HIDDEN[name] for name in POWERS} | {"tail_w": 92.0}
    gpu = replace(GPUS["h100-sxm"], **powers)
    return Profile(gpu, Efficiency(**{name: HIDDEN[name] for name in TIMES}), "h100-sxm")


def loaded(folder, name, load, gpu, tokens=128, **server):
    scenario = {
        "name": name,
        "seed": 5,
        "server": SERVER | {"gpu": gpu} | server,
        "load": load | {"warmup_requests": 1},
        "prompts": {"source": "synthetic", "max_new_tokens": tokens},
        "power": POWER,
    }
    return run(scenario, folder)


ALONE = {"pattern": "closed_loop", "requests": 30, "max_in_flight": 1}


@pytest.fixture(scope="session")
def hidden(tmp_path_factory):
    """Three loads on the hidden board: one at a time, Poisson, 48 in flight."""
    folder = tmp_path_factory.mktemp("hidden")
    write_profile(folder / "hidden.json", hidden_board())
    gpu = str(folder / "hidden.json")
    return [
        loaded(folder, "alone", ALONE, gpu),
        loaded(folder, "poisson", {"pattern": "poisson", "rate_rps": 4.0, "requests": 120}, gpu),
        loaded(folder, "batch", {"pattern": "closed_loop", "requests": 120, "max_in_flight": 48}, gpu),
    ]


@pytest.fixture(scope="session")
def found(hidden):
    return calibrate([load_run(path) for path in hidden], gpu="h100-sxm")


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_constant_is_found_within_its_interval(found, name):
    ends = found.profile.fitted[name]
    part = found.profile.gpu if name in POWERS else found.profile.efficiency
    assert ends.low <= HIDDEN[name] <= ends.high
    assert getattr(part, name) == pytest.approx(HIDDEN[name], rel=2e-3)
    assert (ends.high - ends.low) / HIDDEN[name] < 0.01
    assert (ends.label, ends.runs) == ("simulated", (0, 1, 2))


def test_what_was_left_out_is_predicted(found):
    """The engine's law is the model's, so only the stamps' microseconds are left."""
    assert [held.what for held in found.held_out] == ["duration of a step", "energy of a slice"]
    assert all(0 < held.median < 1e-3 and held.n > 100 for held in found.held_out)


def test_one_run_of_mixed_load_tells_the_same(hidden):
    """A drawn board's constants instead of a profile's, seen in one run of 4 requests a second."""
    [_, poisson, _] = hidden
    found = calibrate([load_run(poisson)], gpu="h100-sxm")
    assert found.folds == "each quarter of the run, from the rest"
    for name in TIMES:
        assert getattr(found.profile.efficiency, name) == pytest.approx(HIDDEN[name], rel=5e-3)


def test_what_the_runs_do_not_tell_stays_at_the_table_s_value(tmp_path):
    """Replies of one token take no decode steps: the time of a graph is not seen."""
    prompts_only = calibrate([load_run(loaded(tmp_path, "prompts", ALONE, "h100-sxm", tokens=1))])
    efficiency, table = prompts_only.profile.efficiency, Efficiency()
    assert prompts_only.times.kept["graph_overhead_s"] == "nothing in the runs needs it"
    assert efficiency.graph_overhead_s == table.graph_overhead_s
    assert efficiency.sources["graph_overhead_s"] == table.sources["graph_overhead_s"]
    assert "graph_overhead_s" not in prompts_only.profile.fitted
    assert (
        prompts_only.profile.fitted["compute"].low
        <= table.compute
        <= prompts_only.profile.fitted["compute"].high
    )


def test_a_run_without_power_tells_times_only(tmp_path):
    path = loaded(tmp_path, "dark", ALONE, "h100-sxm", tokens=16)
    (path / "power.jsonl").write_text("")
    found = calibrate([load_run(path)])
    assert found.powers is None
    assert found.no_power is not None
    assert "gpu0" in found.no_power
    assert found.profile.gpu == GPUS["h100-sxm"]
    assert "compute" in found.profile.fitted


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixture"])
def test_work_is_the_step_model_s(model, shards, dtype):
    """Durations, FLOP and bytes of many steps at once are those of `StepModel.step`, one by one."""
    keys = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_size": 1024}
    keys |= {"num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4}
    keys |= {"intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 4096}
    shape = MODELS[model] if model in MODELS else transformer_from(keys, "mixture", "mixture", "a test")
    gpu, efficiency = GPUS["a100-sxm"], Efficiency(compute=0.4, bandwidth=0.7, graph_max_rows=8)
    steps = StepModel(shape, gpu, DTYPES[dtype], shards=shards, efficiency=efficiency)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 3, 60) * rng.integers(1, 3000, 60)
    rows = rng.integers(0, 20, 60) + (prompt == 0)
    context = rows * rng.integers(1, 2000, 60)
    pairs, emits = prompt * (prompt + 1) // 2, rows + (prompt > 0)
    asked = list(zip(*(x.tolist() for x in (prompt, pairs, prompt, rows, context, emits)), strict=True))
    expected = [steps.step(**dict(zip(Mix._fields, row, strict=True))) for row in asked]
    many = Mix(*(np.array(column, dtype=float) for column in zip(*asked, strict=True)))
    work = work_of(many, shape, gpu, DTYPES[dtype], shards, efficiency)
    np.testing.assert_allclose(work.seconds(efficiency), [c.duration_s for c in expected], rtol=1e-12)
    np.testing.assert_allclose(work.flop_s * steps.peak_flop_per_s, [c.flop for c in expected], rtol=1e-12)
    np.testing.assert_allclose(
        work.traffic_s * gpu.bandwidth_bytes_per_s, [c.traffic_bytes for c in expected], rtol=1e-12
    )


def line(x, y_true, rng, odd=0.0, spread=0.01):
    """Observations of a line with relative errors, a share of them three times too long."""
    y = y_true * (1.0 + spread * rng.standard_normal(len(y_true)))
    y[rng.random(len(y)) < odd] *= 3.0
    return y


def asked(values, wide=1.0):
    return [Question(f"x{k}", v, wide) for k, v in enumerate(values)]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """200 samples of a line whose errors go together within blocks of 10."""
    rng = np.random.default_rng(3)
    true, inside = np.array([2.0, 0.5]), 0
    x = np.stack([np.ones(400), rng.uniform(1.0, 20.0, 400)], axis=1)
    blocks = np.arange(400) // 10
    for _ in range(200):
        y = x @ true * (1.0 + 0.02 * np.repeat(rng.standard_normal(40), 10))
        found = answer(lambda v: (x @ v, x), y, asked([1.0, 1.0]), (blocks,), relative=True)
        inside += bool(np.all(np.abs(found.value - true) <= found.half))
    assert 0.85 * 200 <= inside <= 199  # both at once


def test_odd_steps_do_not_steer():
    """A twentieth of the steps waited for something else."""
    rng = np.random.default_rng(4)
    true = np.array([2.0, 0.5])
    x = np.stack([np.ones(2000), rng.uniform(1.0, 20.0, 2000)], axis=1)
    y = line(x, x @ true, rng, odd=0.05)
    found = answer(lambda v: (x @ v, x), y, asked([1.0, 1.0]), (np.arange(2000),), relative=True)
    np.testing.assert_allclose(found.value, true, rtol=0.01)
    plain = np.linalg.lstsq(x / (x @ true)[:, None], y / (x @ true), rcond=None)[0]
    assert np.max(np.abs(plain / true - 1)) > 0.05


def test_a_constant_told_worse_than_the_table_knows_it_is_kept_and_its_error_carried():
    """y = a + b x with x hardly varying: b known to 1 % fixes a to b's error; alone neither is told."""
    rng = np.random.default_rng(5)
    x = np.stack([np.ones(300), 1.0 + 1e-2 * rng.standard_normal(300)], axis=1)
    y = line(x, x @ np.array([1.0, 1.0]), rng)
    questions = [Question("a", 1.2, 0.5), Question("b", 1.0, 0.01)]
    found = answer(lambda v: (x @ v, x), y, questions, (np.arange(300),), relative=True)
    assert found.told == (True, False)
    assert found.value[1] == 1.0
    assert "worse than the table" in found.kept["b"]
    assert found.half[0] >= np.log(1.01)  # the table's 1 % of b
    assert abs(found.value[0] - 1.0) <= found.half[0]


def test_a_constant_that_would_be_negative_is_zero():
    rng = np.random.default_rng(6)
    x = np.stack([np.ones(300), rng.uniform(1.0, 20.0, 300)], axis=1)
    y = 0.5 * x[:, 1] - 0.05 + 0.01 * rng.standard_normal(300)
    found = answer(lambda v: (x @ v, x), y, asked([1.0, 1.0], 9.0), (np.arange(300),), relative=True)
    assert 0 <= found.value[0] < 1e-6
    assert found.value[1] == pytest.approx(0.5, rel=0.05)


def test_a_share_of_the_peak_has_an_interval_that_ends_at_all_of_it():
    """1 / bandwidth of 2 +- 1.5 reaches below 1, and 1 / compute of 4 +- 5 below 0."""
    told = Answer(
        value=np.array([2.0, 4.0, 1e-3, 1e-3]),
        half=np.array([1.5, 5.0, 2e-3, 1e-4]),
        told=(True,) * 4,
        kept={},
        condition=1.0,
        tangled=(),
        residual=np.empty(0),
        n=0,
    )
    ends = constants(told)
    assert ends["bandwidth"] == (0.5, pytest.approx(1 / 3.5), 1.0)
    assert ends["compute"] == (0.25, pytest.approx(1 / 9), 1.0)
    assert ends["eager_overhead_s"] == (1e-3, 0.0, pytest.approx(3e-3))


def test_the_verb_writes_a_profile_that_run_takes(hidden, tmp_path, capsys):
    output = tmp_path / "mine.json"
    words = ["calibrate", *map(str, hidden[:1]), "--gpu", "h100-sxm", "-o", str(output), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(output.read_text())
    assert told["kind"] == "loadgen-hardware-profile"
    assert told["runs"][0]["name"] == hidden[0].name
    assert told["efficiency"]["compute"]["label"] == "simulated"
    assert read_profile(output).efficiency.compute == pytest.approx(HIDDEN["compute"], rel=2e-3)


def test_people_are_told_what_was_fitted_kept_and_left_out(found):
    out = StringIO()
    render(found, Console(file=out, width=120), Path("mine.json"))
    rows = [line.split() for line in out.getvalue().splitlines()]
    [bandwidth] = [row for row in rows if row[:1] == ["bandwidth"] and len(row) > 3]
    assert bandwidth[1] == "0.8"
    assert float(bandwidth[2]) == pytest.approx(HIDDEN["bandwidth"], rel=2e-3)
    assert out.getvalue().count("held out") == 2
    assert "mine.json" in out.getvalue()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "h100-sxn"], "; did you mean 'h100-sxm'?"),
        (["--gpu", "l4"], "expected at most 1; the runs are faster than the peaks of l4 allow"),
        (["--gpu", "h100-sxm", "--model", "lama-3.1-8b"], "; did you mean 'llama-3.1-8b'?"),
        (["--gpu", "h100-sxm", "--dtype", "bfloat"], "; did you mean 'bfloat16'?"),
    ],
)
def test_a_wrong_board_model_or_format_is_one_line(hidden, flags, said, capsys):
    assert main(["calibrate", str(hidden[0]), *flags]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_runs_that_cannot_be_taken_are_refused(hidden, tmp_path):
    other = loaded(tmp_path, "other", ALONE, "h200-sxm", tokens=4)
    with pytest.raises(ConfigError, match="expected every run once, got it twice"):
        calibrate([load_run(hidden[0]), load_run(hidden[0])])
    for base in (None, "h100-sxm"):
        with pytest.raises(ConfigError, match="expected runs of one board"):
            calibrate([load_run(hidden[0]), load_run(other)], gpu=base)
    bare = loaded(tmp_path, "bare", ALONE, "h100-sxm", tokens=4, streaming=False)
    with pytest.raises(ConfigError, match="no stamps of their own"):
        calibrate([load_run(bare)])
    capped = loaded(tmp_path, "capped", ALONE, "h100-sxm", tokens=4, hardware={"power_cap_w": 400.0})
    with pytest.raises(ConfigError, match=r"server\.hardware\.power_cap_w: expected none"):
        calibrate([load_run(capped)])


def test_the_power_held_after_work_is_not_taken_for_rest(tmp_path):
    """A board that stays at 112 W for 18 s after work, in a run without longer pauses."""
    path = loaded(tmp_path, "tail", ALONE, "rtx-4090", tokens=48, model="qwen2.5-3b")
    found = calibrate([load_run(path)])
    assert found.powers is not None
    assert found.powers.kept["context_idle_w"] == "nothing in the runs needs it"
    assert found.profile.gpu.context_idle_w == GPUS["rtx-4090"].context_idle_w


def test_steps_that_share_a_prompt_which_one_of_them_shows_are_left_out(tmp_path):
    """Prompts cut at 2,048 tokens a forward: no step that is left did more or less than it is taken for."""
    load = {"pattern": "closed_loop", "requests": 80, "max_in_flight": 24}
    cut = {"max_batch_prefill_tokens": 2048, "prefix_caching": False}
    run_ = load_run(loaded(tmp_path, "cut", load, "h100-sxm", tokens=32, launcher=cut))
    seen = observe(run_, subject_of(run_))
    off = np.abs(seen.did.duration_s / seen.work.seconds(Efficiency()) - 1.0)
    assert off[seen.usable].max() < 1e-3 < off[~seen.usable].max()
    assert seen.usable.mean() > 0.5


@pytest.mark.parametrize(("active_w", "high_w", "held"), [(91.97, 92.1, True), (91.0, 91.5, False)])
def test_an_active_power_not_told_from_idle_is_idle_power(active_w: float, high_w: float, held: bool) -> None:
    """Found on drawn L4 boards, some of which draw when they begin a step what they draw at rest."""
    values = {"context_idle_w": 92.0, "active_w": active_w}
    fitted = {"active_w": Fitted(active_w - 0.1, high_w, "simulated", (0,))}
    if held:
        _rising(values, fitted, hidden_board())
        assert values["active_w"] == 92.0
    else:
        with pytest.raises(ConfigError, match="active_w 91: expected between context_idle_w 92"):
            _rising(values, fitted, hidden_board())
