"""Runs on several simulated boards: what the analysis sums, bounds and believes of them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from made_runs import COUNTER, INSTANT, constant, lattice, power, record, run_of

from analysis import energy, floor, lint
from analysis.run import Run
from analysis.summary import summarize
from loadgen import clock
from loadgen.physics.boards import GPUS
from loadgen.power.sampler import sample
from loadgen.power.simulated import SimulatedSource
from loadgen.server.gpu import Board
from loadgen.types import Reading

H100 = replace(GPUS["h100-sxm"], tail_s=0.0)
EMBEDDED = {"kind": "embedded", "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
BOARDS, BUSY_S = 4, 20.0


def _read(powers_w: list[float], **gains: float) -> tuple[list[Reading], SimulatedSource, list[Board]]:
    """Boards that idle 2 s, work 20 s each at its own power, and idle 4 s, sampled every 0.1 s."""

    async def main() -> tuple[list[Reading], SimulatedSource, list[Board]]:
        boards = [Board(H100, 0.0, **gains) for _ in powers_w]
        for board, power_w in zip(boards, powers_w, strict=True):
            board.busy(2.0, BUSY_S, power_w)
            board.advance(26.0)
        source = SimulatedSource(boards, gpu=H100.name, power_limit_w=H100.tdp_w)
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(25.9, stop.set)
        await sample(source, 0.1, rows.extend, stop)
        return rows, source, boards

    return clock.run_virtual(main())


def _run(powers_w: list[float], **gains: float) -> tuple[Run, list[Board]]:
    rows, source, boards = _read(powers_w, **gains)
    shifted = [replace(row, t_s=row.t_s - 2.0) for row in rows]
    requests = [record(i, 0.1 * i, output_tokens=52, prompt_tokens=100) for i in range(195)]
    power = {"interval_s": 0.1, "domains": [asdict(d) for d in source.domains()], "reason": None}
    run = run_of(
        requests,
        shifted,
        end_s=BUSY_S,
        power=power,
        gpus=list(source.boards),
        server=EMBEDDED,
        clock="virtual",
    )
    return run, boards


def test_energy_and_idle_are_the_sums_over_the_boards() -> None:
    powers_w = [300.0, 310.0, 320.0, 330.0]
    run, boards = _run(powers_w)
    summary = summarize(run)
    gpu = summary["energy"]["gpu"]
    truth_j = sum(board.energy_j(22.0) - board.energy_j(2.0) for board in boards)
    assert truth_j == pytest.approx(1260.0 * BUSY_S)
    # Read as often as it is published, so a value may be 0 to 100 ms old: 50 ms of the step at either edge.
    assert gpu["total_j"]["value"] == pytest.approx(truth_j, abs=0.051 * 1260.0)
    assert gpu["low_j"] < truth_j < gpu["high_j"]
    assert gpu["domains"] == ["gpu0", "gpu1", "gpu2", "gpu3"] and gpu["label"] == "simulated"
    assert gpu["mean_power_w"]["value"] == pytest.approx(1260.0, rel=2e-3)
    assert gpu["idle_power_w"]["value"] == pytest.approx(BOARDS * H100.context_idle_w, rel=1e-3)
    assert gpu["energy_per_request"]["value"] == pytest.approx(1260.0 * BUSY_S / 195, rel=2e-3)
    assert summary["valid"], summary["reasons"]
    # Each board's integral checks its own counter, none the sum.
    found = energy.measure(run, np.array([0.0, BUSY_S]))["gpu"]
    for board, power_w in zip(found.boards, powers_w, strict=True):
        assert dict(board.checks)[f"{board.domain}.instant"] == pytest.approx(power_w * BUSY_S, rel=0.01)


def test_the_idle_floor_and_the_power_limit_count_every_board() -> None:
    run, _ = _run([300.0] * BOARDS)
    one, four = (floor.physical_floor(run, BUSY_S, n) for n in (1, BOARDS))
    assert one is not None and four is not None
    assert four.hard_j - one.hard_j == pytest.approx(3 * floor.least_idle_w(H100) * BUSY_S)
    assert four.soft_j == one.soft_j  # the same work, however many boards share it
    # 350 W is plenty for one board and below the idle of four.
    starved = lattice(195, 0.1, output_tokens=52, prompt_tokens=100)
    readings = [
        replace(row, domain=row.domain.replace("gpu0", f"gpu{k}"))
        for k in range(BOARDS)
        for row in constant(350.0 / BOARDS, BUSY_S)
    ]
    domains = [
        replace(d, name=d.name.replace("gpu0", f"gpu{k}")) for k in range(BOARDS) for d in (COUNTER, INSTANT)
    ]
    power = {"interval_s": 0.1, "domains": [asdict(d) for d in domains]}
    low = run_of(starved, readings, end_s=BUSY_S, power=power, server=EMBEDDED)
    verdict = lint.judge(low, energy.measure(low, np.array([0.0, BUSY_S])))
    assert any("is below idle: 4 x NVIDIA H100" in reason for reason in verdict.reasons), verdict.reasons


def test_a_sensor_gain_moves_what_is_measured_and_not_what_was_drawn() -> None:
    run, boards = _run([400.0, 400.0], sensor_gain=1.05)
    measured_j = energy.measure(run, np.array([0.0, BUSY_S]))["gpu"].total_j
    truth_j = sum(board.energy_j(22.0) - board.energy_j(2.0) for board in boards)
    assert truth_j == pytest.approx(800.0 * BUSY_S)
    assert measured_j == pytest.approx(1.05 * truth_j, rel=2e-3)


def _embedded(**server: Any) -> Run:
    rows = [record(i, 0.05 * i, output_tokens=1) for i in range(1000)]
    return run_of(rows, constant(110.0, 50.0), server=EMBEDDED, scenario={"server": server}, end_s=50.0)


def test_prompts_that_a_prefix_cache_may_have_saved_are_not_in_the_hard_floor() -> None:
    """Found: the embedded server has a prefix cache now; its prompts were all taken for computed."""
    floors = [
        floor.physical_floor(_embedded(launcher={"prefix_caching": cached}), 50.0, 1)
        for cached in (False, True)
    ]
    uncached, cached = floors
    assert uncached is not None and cached is not None
    # 2 x 6.979e9 FLOP a prompt token (theory.md), 1.2 million of them at 989 TFLOP/s.
    prefill_j = (H100.active_w - floor.least_idle_w(H100)) * 1.2e6 * 2 * 6.979e9 / 989e12
    assert uncached.hard_j - cached.hard_j > 0.5 * prefill_j
    assert uncached.soft_j == cached.soft_j


def test_a_drawn_board_is_not_judged_by_the_tables_idle_power() -> None:
    """Found: a draw whose idle lies below the table's least was called a wrong board."""

    def reasons(run: Run) -> tuple[str, ...]:
        return lint.judge(run, energy.measure(run, np.array([0.0, 50.0]))).reasons

    idle = constant(90.0, 50.0)
    rows = lattice(100, 0.5, output_tokens=1, prompt_tokens=1)
    as_listed = run_of(rows, idle, server=EMBEDDED, end_s=50.0)
    drawn = run_of(rows, idle, server=EMBEDDED, end_s=50.0, scenario={"server": {"hardware": {"draw": 3}}})
    assert any("below idle" in reason for reason in reasons(as_listed))
    assert reasons(drawn) == ()


@pytest.mark.parametrize(("baseline_s", "idle_w", "warned"), [(2.0, 112.0, True), (24.0, 50.0, False)])
def test_idle_power_is_read_after_the_tail_or_called_the_tails(
    baseline_s: float, idle_w: float, warned: bool
) -> None:
    """Found: a run on an RTX 4090 showed the tail's 112 W as its idle power, however long the baseline."""
    rtx, end_s = GPUS["rtx-4090"], 100.0

    def watts(t_s: np.ndarray) -> np.ndarray:
        since_s = np.where(t_s < 0, t_s + baseline_s, t_s - end_s)  # warm-ups and load end there
        return np.where((t_s >= 0) & (t_s < end_s), 300.0, np.where(since_s < rtx.tail_s, 112.0, 50.0))

    def joules(t_s: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(watts(t_s)[:-1] * np.diff(t_s))])

    requests = [record(i, i * 0.5) for i in range(200)]
    requests[-1] = replace(requests[-1], done_s=end_s)
    warm_up = record(-1, -baseline_s - 1, phase="warmup", done_s=-baseline_s)
    domains = [asdict(d) for d in (COUNTER, INSTANT)]
    run = run_of(
        [warm_up, *requests],
        power(watts, joules, end_s, baseline_s=baseline_s),
        server={"kind": "tgi", "model": None, "gpu": rtx.id, "dtype": None},
        counts={"planned": 200, "warmup": 1},
        power={"interval_s": 0.1, "baseline_s": baseline_s, "domains": domains, "reason": None},
        end_s=end_s,
    )
    parts = energy.measure(run, np.array([0.0, end_s]))
    assert parts["gpu"].idle_before_w == pytest.approx(idle_w, rel=0.01)
    assert parts["gpu"].idle_after_w == pytest.approx(idle_w, rel=0.01)
    assert any("decays after work" in w for w in lint.judge(run, parts).warnings) is warned


def test_a_baseline_in_the_tail_does_not_make_a_quiet_run_look_dead() -> None:
    """Found: after 18 s of tail the board idles far below what its two baselines, in the tail, read."""
    rtx = GPUS["rtx-4090"]
    assert rtx.tail_s > 4.0 and rtx.tail_w > 1.2 * rtx.context_idle_w
    end_s, from_s, to_s = 300.0, rtx.tail_s, 295.0

    def joules(t_s: np.ndarray) -> np.ndarray:
        in_tail = np.clip(t_s, -10.0, from_s) + np.maximum(0.0, t_s - to_s)
        return rtx.tail_w * in_tail + rtx.context_idle_w * np.clip(t_s - from_s, 0.0, to_s - from_s)

    def watts(t_s: np.ndarray) -> np.ndarray:
        return np.where((t_s < from_s) | (t_s >= to_s), rtx.tail_w, rtx.context_idle_w)

    rows = [record(0, 0.0, output_tokens=1), record(1, 295.0, output_tokens=1)]
    run = run_of(rows, power(watts, joules, end_s), server={**EMBEDDED, "gpu": "rtx-4090"}, end_s=end_s)
    parts = energy.measure(run, np.array([0.0, end_s]))
    assert parts["gpu"].mean_power_w is not None and parts["gpu"].idle_before_w is not None
    assert parts["gpu"].mean_power_w < 0.9 * parts["gpu"].idle_before_w
    assert not any("own idle" in reason for reason in lint.judge(run, parts).reasons)
