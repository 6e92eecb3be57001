"""The engine without HTTP: against the whole path, `drive`, queueing theory, and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import embedded_runs
import numpy as np
import pytest

import analysis
from loadgen.emulation import Jobs, Lengths, constant_lengths, jobs_of, power_draws, simulate
from loadgen.errors import ConfigError
from loadgen.launch import Hardware, Launch, Launcher
from loadgen.plan import build
from loadgen.scenario_file import load_scenario
from loadgen.server.deployment import Deployment
from loadgen.server.engine import Sequence, drive

SERVER = embedded_runs.SERVER
DEPLOYMENT = Deployment(Launch())


def poisson(n: int, rate_rps: float, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_rps, n))


def jobs(times_s: np.ndarray[tuple[int], np.dtype[np.float64]], prompt: int = 800, reply: int = 60) -> Jobs:
    return Jobs(times_s, times_s, constant_lengths(len(times_s), prompt, reply))


def test_it_is_the_embedded_run_without_its_http(tmp_path: Path) -> None:
    """To a record's microsecond. Without a prefix cache, in which the run's warm-up leaves its beginning."""
    path = embedded_runs.run(
        {
            "name": "whole",
            "seed": 4,
            "server": {**SERVER, "launcher": {"prefix_caching": False}},
            "load": {"pattern": "poisson", "rate_rps": 8.0, "requests": 150, "warmup_requests": 1},
            "prompts": {"source": "synthetic", "max_new_tokens": 60},
            "power": {"interval_s": 0.1, "baseline_s": 1},
        },
        tmp_path,
    )
    scenario = load_scenario(tmp_path / "whole.yaml")
    planned = build(scenario)
    deployment = Deployment(scenario.server.launch(scenario.seed))
    served = simulate(deployment, jobs_of(planned.measured, exact_lengths=planned.exact_lengths))
    run = analysis.load(path)
    requests = run.requests.sort_values("id")
    assert served.ok.all() and served.most_in_flight > 4
    assert (served.jobs.lengths.reply_tokens == requests["output_tokens"]).all()
    assert (served.jobs.lengths.prompt_tokens == requests["prompt_tokens"]).all()
    for name in ("first_s", "done_s"):
        assert np.abs(getattr(served, name) - requests[name].to_numpy()).max() < 2e-6
    energy = analysis.summarize(run)["energy"]["gpu"]
    # The run's is read every 0.1 s from a counter renewed as often: up to 0.4 % of these 19 s at each end.
    assert served.energy_j == pytest.approx(energy["total_j"]["value"], rel=4e-3)


def test_it_steps_as_drive_does() -> None:
    times_s = poisson(400, 6.0)
    served = simulate(DEPLOYMENT, jobs(times_s))
    sequences = [Sequence(k, 800, 60, 60) for k in range(400)]
    works = list(drive(DEPLOYMENT.engine(), zip(times_s.tolist(), sequences, strict=True)))
    assert served.done_s.tolist() == [s.done_s for s in sequences]
    assert served.busy_j == pytest.approx(sum(w.power_w * w.duration_s for w in works), rel=1e-12)
    idle_w = DEPLOYMENT.gpu.context_idle_w
    assert served.idle_j == pytest.approx(idle_w * (served.end_s - served.busy_s), rel=1e-9)


@pytest.mark.parametrize("load", [{"rate_rps": 25.0, "max_in_flight": 6}, {"pattern": "all_at_once"}])
def test_bursts_and_freed_slots_wait_for_a_step_as_over_http(load: dict[str, object], tmp_path: Path) -> None:
    """What a client sends on an answer, or beside others at one instant, comes when a step has begun."""
    path = embedded_runs.run(
        {
            "name": "waiting",
            "server": {**SERVER, "launcher": {"prefix_caching": False}},
            "load": {"pattern": "poisson", "requests": 40, "warmup_requests": 0} | load,
            "prompts": {"source": "synthetic", "max_new_tokens": 20},
            "power": {"interval_s": 0.1, "baseline_s": 0},
        },
        tmp_path,
    )
    scenario = load_scenario(tmp_path / "waiting.yaml")
    planned = build(scenario)
    served = simulate(
        Deployment(scenario.server.launch(scenario.seed)),
        jobs_of(planned.measured, exact_lengths=planned.exact_lengths),
    )
    requests = analysis.load(path).requests.sort_values("id")
    for name in ("sent_s", "first_s", "done_s"):
        assert np.abs(getattr(served, name) - requests[name].to_numpy()).max() < 2e-6


def test_a_burst_begins_with_its_first_request() -> None:
    served = simulate(DEPLOYMENT, jobs(np.zeros(3)))
    alone_s, beside_s = (
        DEPLOYMENT.step_model.step(
            prefill_tokens=n * 800,
            prefill_pairs=n * 800 * 801 // 2,
            prefill_span_tokens=n * 800,
            decode_rows=rows,
            decode_context_tokens=rows * 800,
            emitting_rows=n + rows,
        ).duration_s
        for n, rows in ((1, 0), (2, 1))
    )
    assert served.first_s.tolist() == pytest.approx([alone_s, alone_s + beside_s, alone_s + beside_s])


def test_one_slot_is_a_queue_of_one_server() -> None:
    """M/D/1: mean wait rho s / (2 (1 - rho)) (Pollaczek and Khinchine)."""
    alone_s = float(simulate(DEPLOYMENT, jobs(np.zeros(1))).done_s[0])
    rho = 0.6
    n = 20_000
    one = replace(jobs(poisson(n, rho / alone_s)), max_in_flight=1)
    served = simulate(DEPLOYMENT, one)
    assert served.most_in_flight == 1
    batches = served.hold_s.reshape(20, -1).mean(axis=1)
    error_s = float(batches.std(ddof=1)) / np.sqrt(20)
    assert abs(float(batches.mean()) - rho * alone_s / (2 * (1 - rho))) < 4 * error_s


def test_a_closed_loop_keeps_its_number_under_way() -> None:
    n = 200
    zeros = np.zeros(n)
    served = simulate(DEPLOYMENT, Jobs(zeros, zeros, constant_lengths(n, 300, 40), 8, "queue", closed=True))
    assert served.ok.all() and served.most_in_flight == 8
    assert (served.hold_s == 0).all()
    under_way = [int(((served.sent_s <= t) & (served.done_s > t)).sum()) for t in served.sent_s[8:150]]
    assert set(under_way) == {8}


def test_a_full_server_and_a_full_client_turn_requests_away() -> None:
    burst = jobs(np.zeros(40))
    limited = Deployment(Launch(max_concurrent_requests=25))
    served = simulate(limited, burst)
    assert served.ok.sum() == 25 and (served.sent_s == 0).all() and np.isnan(served.first_s).sum() == 15
    dropped = simulate(DEPLOYMENT, replace(burst, max_in_flight=10, overflow="drop"))
    assert dropped.ok.sum() == 10 and np.isnan(dropped.sent_s).sum() == 30
    assert dropped.per_success_j == pytest.approx(dropped.energy_j / 10)


def test_a_request_that_can_never_be_scheduled_is_not_served() -> None:
    lengths = Lengths(np.array([500, 500_000]), np.array([20, 20]), np.array([20, 20]))
    served = simulate(DEPLOYMENT, Jobs(np.zeros(2), np.zeros(2), lengths))
    assert served.ok.tolist() == [True, False]


def test_nothing_served_has_no_energy_per_success() -> None:
    lengths = Lengths(np.array([500_000]), np.array([20]), np.array([20]))
    served = simulate(DEPLOYMENT, Jobs(np.array([3.0]), np.array([3.0]), lengths))
    assert served.per_success_j is None
    assert served.energy_j == pytest.approx(3.0 * DEPLOYMENT.gpu.context_idle_w)


def test_rest_after_work_has_the_boards_tail() -> None:
    deployment = Deployment(Launch(model="qwen2.5-0.5b", gpu="rtx-4090", dtype="bfloat16"))
    gpu = deployment.gpu
    served = simulate(deployment, jobs(np.array([0.0, 60.0]), 100, 5))
    alone_s = served.busy_s / 2
    rest_s = 60.0 - alone_s
    assert served.idle_j == pytest.approx(
        gpu.tail_s * gpu.tail_w + (rest_s - gpu.tail_s) * gpu.context_idle_w, rel=1e-9
    )


def test_two_shards_are_two_boards() -> None:
    two = Deployment(Launch(launcher=Launcher(num_shard=2)))
    served = simulate(two, jobs(np.array([0.0, 10.0])))
    assert served.idle_j == pytest.approx(2 * two.gpu.context_idle_w * (served.end_s - served.busy_s))


def test_recorded_works_have_the_same_energy_under_the_same_constants() -> None:
    served = simulate(DEPLOYMENT, jobs(poisson(300, 8.0), 1300, 90), record=True)
    plain = simulate(DEPLOYMENT, served.jobs)
    assert served.works is not None and plain.works is None
    assert served.done_s.tolist() == plain.done_s.tolist()
    assert served.works.duration_s.sum() == pytest.approx(served.busy_s, rel=1e-12)
    assert served.works.busy_j(DEPLOYMENT.gpu) == pytest.approx(served.busy_j, rel=1e-12)


def test_a_draw_of_power_constants_is_the_deployment_with_those_constants() -> None:
    drawn = Deployment(Launch(seed=5, hardware=Hardware(draw=3)))
    served = simulate(drawn, jobs(poisson(200, 5.0)), record=True)
    assert served.works is not None
    # Its own board through the works of its own times, and not the nominal board's.
    assert served.works.busy_j(drawn.gpu) == pytest.approx(served.busy_j, rel=1e-12)
    assert served.works.busy_j(DEPLOYMENT.gpu) != pytest.approx(served.busy_j, rel=1e-3)


def test_draws_are_repeatable_and_keep_what_data_sheets_fix() -> None:
    gpus = power_draws(DEPLOYMENT.gpu, 50, seed=2)
    assert gpus == power_draws(DEPLOYMENT.gpu, 50, seed=2) != power_draws(DEPLOYMENT.gpu, 50, seed=3)
    assert {g.tdp_w for g in gpus} == {DEPLOYMENT.gpu.tdp_w}
    assert len({g.context_idle_w for g in gpus}) > 40


def test_prompts_that_begin_alike_meet_in_the_cache_when_asked(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "%s"}]}\n'
    (tmp_path / "p.jsonl").write_text(line % ("the same long beginning " * 60) * 4)
    (tmp_path / "s.yaml").write_text(
        "name: s\nload: {pattern: constant, interval_s: 5, requests: 4}\n"
        "prompts: {source: jsonl, path: p.jsonl, max_new_tokens: 8}\n"
    )
    planned = build(load_scenario(tmp_path / "s.yaml"))
    alone, shared = (
        simulate(DEPLOYMENT, jobs_of(planned.measured, exact_lengths=False, shared_prefixes=share))
        for share in (False, True)
    )
    assert alone.cached_tokens.tolist() == [0] * 4
    assert shared.cached_tokens[0] == 0 and (shared.cached_tokens[1:] > 200).all()


@pytest.mark.parametrize(
    ("demand_s", "due_s", "n"),
    [([0.0, 1.0], [1.0, 0.5], 2), ([1.0], [0.5], 1), ([0.0], [0.0], 2), ([], [], 0)],
)
def test_jobs_that_make_no_sense_are_refused(demand_s: list[float], due_s: list[float], n: int) -> None:
    with pytest.raises(ValueError, match="jobs: expected"):
        Jobs(np.array(demand_s), np.array(due_s), constant_lengths(n, 10, 10))


def test_power_constants_of_a_capped_board_are_not_drawn() -> None:
    capped = Deployment(Launch())
    capped.step_model = object()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="power cap"):
        simulate(capped, jobs(np.zeros(1)), record=True)
