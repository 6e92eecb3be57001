"""NVIDIA boards: the real nvidia-ml-py on a fake driver whose boards' power is a known function of time."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fake_nvml import (
    CALLED,
    DRIVER_NOT_LOADED,
    MODULE_COUNTER,
    NO_COUNTER,
    NO_PERMISSION,
    NOT_SUPPORTED,
    PLAIN_PAIR,
    REPO,
    SENSOR_COUNTER,
    UNSTAMPED,
    Board,
    Driven,
    Host,
    build,
    drive,
    python,
    read_times,
)

SQUARE = Board(low=100, high=400, period=2.0, duty=0.3, phase=0.4)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield build(tmp_path_factory.mktemp("nvml"))


def methods(driven: Driven) -> list[tuple[str, str]]:
    return [(d["name"], d["method"]) for d in driven.domains]


def said(driven: Driven, *words: str) -> list[str]:
    """The warnings that hold all of ``words``."""
    return [line for line in driven.warnings if all(word in line for word in words)]


# -- what is read ------------------------------------------------------------------------------


def test_only_the_sensors_that_a_board_has_become_domains(library: Path) -> None:
    got = drive(library, PLAIN_PAIR, times=[0.0])
    assert methods(got) == [
        ("gpu0", "counter"),
        ("gpu0.instant", "instant"),
        ("gpu0.average", "average"),
        ("gpu1.average", "average"),
    ]
    assert [(d["averaging_s"], d["update_s"]) for d in got.domains] == [
        (None, 0.1),
        (0.025, 0.1),
        (1.0, 0.1),
        (1.0, 0.1),
    ]
    assert all("documented" in d["note"] for d in got.domains)
    assert "nvmlDeviceGetPowerUsage" in got.domains[2]["note"] and "GPU-10000000" in got.domains[2]["note"]
    assert said(got, "MIG", "GPU-20000000", "turn MIG off")
    assert said(got, "gpu1", "no energy counter")
    assert len(got.warnings) == 2


def test_rows_say_which_board_in_which_modes(library: Path) -> None:
    bare = Board(uuid="GPU-b", name="Old Board", mig=1, state_ret=NOT_SUPPORTED)
    whole, old = drive(
        library, [Board(name="NVIDIA H100 80GB HBM3", persistence=0), bare], times=[0.0]
    ).boards
    assert whole == {
        "domain": "gpu0",
        "index": 0,
        "uuid": "GPU-10000000-aaaa",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "570.01",
        "power_limit_w": 700.0,
        "mig": False,
        "ecc": True,
        "persistence": False,
        "architecture": "Hopper",
    }
    assert old["uuid"] == "GPU-b" and old["mig"] is True
    assert [old[key] for key in ("power_limit_w", "ecc", "persistence", "architecture")] == [None] * 4


def test_states_are_what_the_board_tells_and_none_where_it_does_not(library: Path) -> None:
    hot = Board(
        temperature=83, sm=1305, mem=2619, limit=500, pstate=2, reasons=0x24, ecc=3
    )  # software power cap and thermal slowdown
    mute = Board(state_ret=NOT_SUPPORTED)
    no_ecc = Board(ecc_mode=0)
    first, second, third = drive(library, [hot, mute, no_ecc], times=[2.0]).states
    assert first == {
        "t_s": 2.0,
        "domain": "gpu0",
        "temperature_c": 83,
        "sm_clock_mhz": 1305,
        "memory_clock_mhz": 2619,
        "power_limit_w": 500.0,
        "pstate": 2,
        "event_reasons": 0x24,
        "ecc_errors": 3,
    }
    assert {value for key, value in second.items() if key not in ("t_s", "domain")} == {None}
    assert third["ecc_errors"] is None and third["temperature_c"] == 41


def test_processes_are_named_or_not_known_with_the_reason(library: Path) -> None:
    used = Board(processes=((4321, 80 * 2**30), (77, 2**64 - 1), (4000001, 5)))
    refused = Board(processes=((1, 1),), processes_ret=NO_PERMISSION, mig=1)
    got = drive(library, [used, Board(), refused], times=[0.0])
    assert got.processes == {
        "gpu0": [
            {"pid": 77, "name": "/opt/process-77", "memory_bytes": None},
            {"pid": 4321, "name": "/opt/process-4321", "memory_bytes": 80 * 2**30},
            {"pid": 4000001, "name": None, "memory_bytes": 5},
        ],
        "gpu1": [],
        "gpu2": None,
    }
    assert said(got, "gpu2", "who computes on it is not known", "run as a user", "MIG")


@pytest.mark.parametrize("gpus", [["GPU-2"], [1], ["1"], ["GPU-20000000-aaaa", 1]])
def test_selection_by_uuid_prefix_or_index(library: Path, gpus: list[str | int]) -> None:
    got = drive(library, PLAIN_PAIR, gpus=gpus, times=[0.0])
    assert [b["domain"] for b in got.boards] == ["gpu1"]
    assert {r.domain for r in got.readings} == {"gpu1.average"}


def test_an_index_is_nvmls_whatever_cuda_visible_devices_says(library: Path) -> None:
    got = drive(library, PLAIN_PAIR, gpus=[1], times=[0.0], extra_environment={"CUDA_VISIBLE_DEVICES": "1,0"})
    assert [(b["index"], b["uuid"]) for b in got.boards] == [(1, "GPU-20000000-aaaa")]


@pytest.mark.parametrize(
    ("boards", "host", "gpus", "words"),
    [
        (PLAIN_PAIR, Host(init=DRIVER_NOT_LOADED), None, "load the NVIDIA driver"),
        (PLAIN_PAIR, Host(init=NO_PERMISSION), None, "run as a user who may read /dev/nvidia*"),
        ((), Host(), None, "shows no board: it is masked"),
        (PLAIN_PAIR, Host(), ["GPU-9"], "no board for 'GPU-9'; there are 0: GPU-10000000-aaaa"),
        (PLAIN_PAIR, Host(), ["GPU-"], "2 boards for 'GPU-'"),
        (PLAIN_PAIR, Host(), ["MIG-1"], "a MIG instance has no power of its own: give its board's UUID"),
        (
            (Board(handle_ret=NO_PERMISSION), Board()),
            Host(),
            [0],
            "no board for '0'; there are 1: GPU-20000000-aaaa; the board with index 0 is not read: Insuff",
        ),
        ((Board(handle_ret=NO_PERMISSION),), Host(), None, "index 0 is not read: Insufficient Permissions"),
        (
            (Board(name="GeForce", counter=NO_COUNTER, fields_ret=3, usage_ret=3),),
            Host(),
            None,
            "no energy counter and no power sensor on GeForce",
        ),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(
    library: Path, boards: tuple[Board, ...], host: Host, gpus: list[str | int] | None, words: str
) -> None:
    assert words in str(drive(library, boards, host=host, gpus=gpus, times=[0.0]).error)


def test_a_board_that_is_there_and_refuses_does_not_hide_the_others(library: Path) -> None:
    got = drive(library, [Board(handle_ret=NO_PERMISSION), Board(low=250)], times=[0.0])
    assert {d["name"] for d in got.domains} == {"gpu1", "gpu1.instant", "gpu1.average"}
    assert said(got, "index 0 is not read", "run as a user who may read /dev/nvidia*")


def test_without_a_driver_the_error_says_so() -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has an NVIDIA driver")
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    code = (
        "from loadgen.power.nvml import NvmlSource\nfrom loadgen.errors import PowerError\n"
        "try: NvmlSource.open()\nexcept PowerError as exc: print(exc)"
    )
    env["PYTHONPATH"] = str(REPO)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "install the NVIDIA driver" in done.stdout


# -- scopes, return codes ----------------------------------------------------------------------


def test_each_field_has_its_own_return_code(library: Path) -> None:
    got = drive(library, [Board(instant_ret=NOT_SUPPORTED), Board(average_ret=999)], times=[0.0, 0.1])
    assert "gpu0.instant" not in dict(methods(got)) and dict(methods(got))["gpu0.average"] == "average"
    notes = {d["name"]: d["note"] for d in got.domains}
    assert "NVML field 185" in notes["gpu0.average"]
    assert "nvmlDeviceGetPowerUsage" in notes["gpu1.average"] and "gpu1.instant" in notes


@pytest.mark.parametrize(
    ("board", "domain"),
    [
        (Board(arch=5, name="Tesla V100"), "gpu0.instant"),
        (Board(arch=7, name="NVIDIA A100-SXM4-80GB"), "gpu0.instant"),
        (Board(arch=7, name="NVIDIA A40"), "gpu0.average"),
        (Board(arch=9, name="NVIDIA H100 80GB HBM3"), "gpu0.average"),
    ],
)
def test_power_usage_is_instantaneous_before_ampere_and_on_ga100(
    library: Path, board: Board, domain: str
) -> None:
    got = drive(library, [replace(board, fields_ret=NOT_SUPPORTED)], times=[0.0])
    assert methods(got)[1:] == [(domain, domain.partition(".")[2])]


def test_memory_and_module_are_read_apart_from_the_board(library: Path) -> None:
    board = Board(low=300, memory=60, memory_ret=0, module=150, module_ret=0)
    got = drive(library, [board], times=[0.0, 0.1])
    last = {r.domain: r.power_w for r in got.readings if r.power_w is not None}
    assert last == {"gpu0.instant": 300.0, "gpu0.average": 300.0, "gpu0.memory": 60.0, "gpu0.module": 450.0}
    assert dict(methods(got))["gpu0.memory"] == "instant"
    notes = {d["name"]: d["note"] for d in got.domains}
    assert "scope memory, in no total" in notes["gpu0.memory"]
    assert "scope module, in no total" in notes["gpu0.module"]


def test_a_memory_of_0_w_is_no_sensor(library: Path) -> None:
    assert "gpu0.memory" not in dict(methods(drive(library, [Board(memory_ret=0)], times=[0.0])))


def test_on_grace_hopper_the_counter_is_the_modules_and_keeps_out_of_the_boards_name(library: Path) -> None:
    board = Board(name="NVIDIA GH200 480GB", low=300, c2c=1, module=150, module_ret=0, counter=MODULE_COUNTER)
    got = drive(library, [board], seconds=2)
    assert methods(got) == [
        ("gpu0.module_energy", "counter"),
        ("gpu0.instant", "instant"),
        ("gpu0.average", "average"),
        ("gpu0.module", "instant"),
    ]
    assert got.series("gpu0.module_energy")[-1][1] == pytest.approx(900.0)  # 2 s of 450 W
    assert said(got, "gpu0: ", "GH200", "whole module", "gpu0.module_energy", "add no CPU energy")


# -- accuracy ----------------------------------------------------------------------------------


def published_s(board: Board, t_s: float) -> float:
    """The last publication at or before an instant, counted up from the first."""
    k = 0
    while board.publish_phase + (k + 1) * board.publish <= t_s + 1e-9:
        k += 1
    return board.publish_phase + k * board.publish


SIGNALS = {
    "constant": Board(low=312.5),
    "step": Board(low=90, high=640, step=3.7),
    "square": SQUARE,
    "square of 100 ms": Board(low=100, high=500, period=0.2, duty=0.5),
    "square at 73 ms": Board(low=80, high=700, period=0.073, duty=0.4, phase=0.011, publish_phase=0.0371),
    "published every 20 ms": replace(SQUARE, publish=0.02, window=0.02, publish_phase=0.007),
}


def test_readings_are_the_signal_as_it_was_published_at_any_sampling(library: Path) -> None:
    """Values within NVML's 1 mJ and 1 mW of the truth at the publication; power stamped with its instant."""
    boards = [replace(board, window=board.publish) for board in SIGNALS.values()]
    for interval_s, jitter_s in ((0.05, 0.0), (0.1, 0.03), (0.037, 0.01), (0.2, 0.15)):
        times = read_times(8.0, interval_s, jitter_s=jitter_s, start_s=1.0)
        got = drive(library, boards, times=times)
        assert len(got.readings) == 3 * len(boards) * len(times) and not got.warnings
        for n, board in enumerate(boards):
            at = [published_s(board, t) for t in times]
            counted = got.series(f"gpu{n}")
            assert [t for t, _ in counted] == times
            assert [j for _, j in counted] == pytest.approx([board.energy_j(0.0, p) for p in at], abs=1.1e-3)
            shown = got.series(f"gpu{n}.instant")
            assert [t for t, _ in shown] == pytest.approx(at, abs=2e-6)  # the wall clock's float64
            means = [board.energy_j(p - board.window, p) / board.window for p in at]
            assert [w for _, w in shown] == pytest.approx(means, abs=1.1e-3)
            seconds = [board.energy_j(p - 1.0, p) for p in at]
            assert [w for _, w in got.series(f"gpu{n}.average")] == pytest.approx(seconds, abs=1.1e-3)


def test_truth_and_driver_agree_on_random_signals(library: Path) -> None:
    draw = random.Random(7)
    boards = [
        Board(
            low=draw.uniform(40, 200),
            high=draw.uniform(200, 700),
            period=draw.uniform(0.01, 3.0),
            duty=draw.uniform(0.05, 0.95),
            phase=draw.uniform(-1, 1),
            publish=0.0,
        )
        for _ in range(8)
    ]
    times = sorted(draw.uniform(0, 50) for _ in range(40))
    got = drive(library, boards, times=times)
    for n, board in enumerate(boards):
        truth = [board.energy_j(0.0, t) for t in times]
        assert [j for _, j in got.series(f"gpu{n}")] == pytest.approx(truth, abs=1.1e-3)


def test_far_apart_counter_readings_are_off_by_at_most_their_publication(library: Path) -> None:
    """E = last - first; each end is at most one period of power late, whatever the sampling."""
    board = replace(SQUARE, publish_phase=0.043)
    counted = drive(library, [board], seconds=30, interval_s=0.05, jitter_s=0.02).series("gpu0")
    draw = random.Random(3)
    shares = []
    for _ in range(500):
        first, last = sorted(draw.sample(range(len(counted)), 2))
        (a_s, a_j), (b_s, b_j) = counted[first], counted[last]
        if b_s - a_s >= 5:
            error_j = b_j - a_j - board.energy_j(a_s, b_s)
            assert abs(error_j) <= 400 * board.publish + 2e-3
            shares.append(abs(error_j) / board.energy_j(a_s, b_s))
    assert len(shares) > 200 and sorted(shares)[len(shares) // 2] < 0.01


def test_own_time_stamps_make_the_integral_of_a_visible_signal_exact(library: Path) -> None:
    """Each publication is the mean of the 100 ms before its stamp: E = sum of P x 0.1 over stamps."""
    board = replace(SQUARE, publish_phase=0.043)
    shown = drive(library, [board], seconds=20, interval_s=0.05, jitter_s=0.02).series("gpu0.instant")
    by_stamp = {round(t, 4): w for t, w in shown}
    stamps = sorted(by_stamp)
    assert len(stamps) == pytest.approx(200, abs=2)  # 20 s of 100 ms: none missed, none twice
    total_j = sum(by_stamp[t] * 0.1 for t in stamps[1:])
    assert total_j == pytest.approx(board.energy_j(stamps[0], stamps[-1]), rel=1e-5)


def test_a_part_time_sensor_is_wrong_where_the_signal_hides_from_it_and_the_counter_tells(
    library: Path,
) -> None:
    """25 ms of every 100 ms: right for a constant, 2.5 times too high for work that it always meets."""
    hidden = Board(low=100, high=500, period=0.1, duty=0.25, phase=0.075, window=0.025)
    boards = [hidden, replace(hidden, counter=SENSOR_COUNTER), Board(low=321, window=0.025)]
    got = drive(library, boards, seconds=10, interval_s=0.1, jitter_s=0.02)
    assert hidden.energy_j(0, 10) == pytest.approx(2000.0)
    assert {w for _, w in got.series("gpu0.instant")} == {500.0}
    assert got.series("gpu0")[-1][1] == pytest.approx(2000.0)
    assert got.series("gpu1")[-1][1] == pytest.approx(5000.0)  # this counter integrates what its sensor saw
    assert got.series("gpu2")[-1][1] == pytest.approx(3210.0)
    assert {w for _, w in got.series("gpu2.average")} == {321.0}


def test_two_and_eight_boards_are_a_series_each(library: Path) -> None:
    boards = [Board(low=100 + 10 * n, high=400, period=1.0 + n / 10, phase=n / 7) for n in range(8)]
    got = drive(library, boards, seconds=5)
    assert [b["uuid"] for b in got.boards] == [f"GPU-{n}0000000-aaaa" for n in range(1, 9)]
    assert len(got.domains) == 24 and all(len(read) == 24 for read in got.reads)
    for n, board in enumerate(boards):
        (a_s, a_j), (b_s, b_j) = got.series(f"gpu{n}")[0], got.series(f"gpu{n}")[-1]
        assert b_j - a_j == pytest.approx(board.energy_j(a_s, b_s), abs=2e-3)


# -- clocks ------------------------------------------------------------------------------------


def test_readings_carry_the_middle_of_their_call_or_the_drivers_own_stamp(library: Path) -> None:
    """Each driver call takes 4 ms and answers in its middle."""
    got = drive(library, [Board(publish=0.0, window=0.0, stamp=CALLED)], host=Host(call=4e-3), times=[1.0])
    stamps = {r.domain: r.t_s for r in got.readings}
    assert stamps["gpu0"] == pytest.approx(1.002, abs=1e-9)
    assert stamps["gpu0.instant"] == stamps["gpu0.average"] == pytest.approx(1.006, abs=2e-6)
    counted = got.series("gpu0")[0]
    assert counted[1] == pytest.approx(100 * counted[0], abs=2e-3)


@pytest.mark.parametrize(
    ("board", "believed"),
    [
        (Board(stamp=CALLED, stamp_off=-1.9), True),
        (Board(stamp=CALLED, stamp_off=0.004), True),
        (Board(stamp=CALLED, stamp_off=-2.1), False),
        (Board(stamp=CALLED, stamp_off=0.02), False),
        (Board(stamp=UNSTAMPED), False),
    ],
)
def test_an_implausible_stamp_is_replaced_and_said_once(library: Path, board: Board, believed: bool) -> None:
    got = drive(library, [board], host=Host(call=2e-3), times=[5.0, 5.1, 5.2])
    first = next(r.t_s for r in got.readings if r.domain == "gpu0.instant")
    assert first == pytest.approx(5.003 + (board.stamp_off if believed else 0.0), abs=2e-6)
    assert len(said(got, "gpu0", "time stamps are not believed")) == (not believed)


def test_in_real_time_the_fake_follows_the_monotonic_clock(library: Path) -> None:
    code = (
        "import json, os; from loadgen.power.nvml import NvmlSource; s = NvmlSource.open()\n"
        "rows = [[r.t_s, r.domain, r.power_w, r.energy_j] for r in s.read()]\n"
        "print(json.dumps([rows, os.environ['FAKE_ORIGIN_S']]))\n"
        "s.reopen(); assert len(s.read()) == 3; assert not s.warnings"
    )
    said = python(library, code, [Board(low=100, high=400, period=0.2)], real_time=True)
    read, origin_s = json.loads(said)
    rows = {domain: (t, w, j) for t, domain, w, j in read}
    since_s = rows["gpu0"][0] - float(origin_s)
    assert 0 < since_s < 30
    assert rows["gpu0"][2] == pytest.approx(250 * since_s, abs=400 * 0.1 + 20)
    assert -0.2 < rows["gpu0.instant"][0] - rows["gpu0"][0] < 0.05
    assert rows["gpu0.instant"][1] in (100.0, 400.0)


# -- failures ----------------------------------------------------------------------------------


def test_a_counter_that_stands_still_is_named_once_and_never_invented(library: Path) -> None:
    got = drive(library, [Board(low=200, still=2.0), Board(low=200), Board(low=0, still=0.0)], seconds=6)
    lines = said(got, "stood still")
    assert len(lines) == 1 and "gpu0: " in lines[0] and "its power is integrated instead" in lines[0]
    assert got.series("gpu0")[-1][1] == 400.0
    assert got.series("gpu0.instant")[-1][1] == 200.0


def test_a_counter_is_not_called_stuck_before_a_second_has_passed(library: Path) -> None:
    board = Board(low=200, still=2.0)
    assert not said(drive(library, [board], times=[1.0, 2.0, 2.5, 2.99]), "stood still")
    assert said(drive(library, [board], times=[1.0, 2.0, 2.5, 3.01]), "stood still")


def test_a_lost_board_leaves_a_gap_and_one_warning_and_the_others_go_on(library: Path) -> None:
    got = drive(library, [Board(lost=2.0), Board(low=300)], seconds=6)
    assert max(t for t, _ in got.series("gpu0")) == pytest.approx(1.95)
    assert len(got.series("gpu1")) == len(got.times) and not got.errors
    assert said(got, "gpu0: ") == said(got, "fallen off the bus") and len(got.warnings) == 1
    assert [state["domain"] for state in got.states] == ["gpu1"]
    assert got.processes == {"gpu0": None, "gpu1": []}


def test_a_board_that_comes_back_is_found_by_uuid_and_read_on(library: Path) -> None:
    got = drive(library, [Board(lost=2.0, back=3.5, reset=3.5), Board(low=300)], seconds=8)
    times = [t for t, _ in got.series("gpu0")]
    gap = max(pairwise(times), key=lambda pair: pair[1] - pair[0])
    assert gap[0] == pytest.approx(1.95)
    assert 3.5 <= gap[1] <= 3.5 + 2.1  # tried after 1, 2 and 4 s
    joules = [j for _, j in got.series("gpu0")]
    assert sum(b < a for a, b in pairwise(joules)) == 1  # a restart, handed on as it is
    assert joules[-1] == pytest.approx(100 * 4.5)
    assert len(got.series("gpu1")) == len(got.times)
    assert len(said(got, "gpu0: ", "answers again")) == 1 and len(got.warnings) == 2


def test_a_driver_that_is_loaded_again_is_read_on_under_the_same_names(library: Path) -> None:
    """The indices are the other way round afterwards; UUIDs tell the boards apart."""
    host = Host(unload=2.0, reload=4.5, reverse=1)
    got = drive(library, [Board(low=100), Board(low=300)], host=host, seconds=10)
    assert {w for _, w in got.series("gpu0.instant")} == {100.0}
    assert {w for _, w in got.series("gpu1.instant")} == {300.0}
    for n, power_w in enumerate((100, 300)):
        joules = [j for _, j in got.series(f"gpu{n}")]
        assert min(b - a for a, b in pairwise(joules)) < 0
        assert joules[-1] == pytest.approx(power_w * 5.5)
    failed = [t for t, _ in got.errors]
    assert failed[0] == pytest.approx(2.0) and failed[-1] < 6.1
    assert "driver was reset or unloaded" in got.errors[0][1]
    assert "load the NVIDIA driver" in got.errors[-1][1]
    assert said(got, "gpu0: ", "answers again") and said(got, "gpu1: ", "answers again")


def test_a_board_that_never_comes_back_is_looked_for_ever_more_rarely(library: Path) -> None:
    """Connecting anew takes a driver call for each board, here 10 ms: the reads that began so late."""
    got = drive(
        library, [Board(lost=1.0), Board()], host=Host(call=0.01), times=[float(t) for t in range(300)]
    )
    late = [
        t for t, (t_s, _) in zip(got.times, got.series("gpu1"), strict=True) if t > 1.0 and t_s - t > 0.01
    ]
    assert 8 <= len(late) <= 11
    assert max(b - a for a, b in pairwise(late)) <= 61


def test_a_reset_is_a_smaller_counter_and_not_a_clamped_one(library: Path) -> None:
    got = drive(library, [Board(offset=5000.0, reset=2.0)], seconds=4)
    joules = [j for _, j in got.series("gpu0")]
    assert min(b - a for a, b in pairwise(joules)) < -5000
    assert joules[-1] == pytest.approx(200.0)


def test_a_sensor_that_fails_alone_leaves_a_gap_in_its_own_domain(library: Path) -> None:
    """A driver whose counter stops answering (code 999) while the fields go on."""
    code = (
        "import ctypes, json; from loadgen.power.nvml import NvmlSource; import fake_nvml as f\n"
        "d = ctypes.CDLL('libnvidia-ml.so.1'); s = NvmlSource.open()\n"
        "again = f.script([f.Board(counter_ret=999)]).encode()\n"
        "before = [r.domain for r in s.read()]; assert d.fake_configure(again) == 0\n"
        "after = [r.domain for r in s.read() + s.read()]; print(json.dumps([before, after, s.warnings]))"
    )
    before, after, warnings = json.loads(python(library, code, [Board()], real_time=True))
    assert before == ["gpu0", "gpu0.instant", "gpu0.average"]
    assert after == ["gpu0.instant", "gpu0.average"] * 2
    assert len(warnings) == 1 and warnings[0].startswith("power: gpu0: Unknown Error: ")


def test_a_board_that_hangs_is_looked_for_again_with_advice(library: Path) -> None:
    """Every call times out (code 10) from a second on, and answers again later."""
    code = (
        "import ctypes, json; from loadgen import clock; from loadgen.errors import PowerError\n"
        "from loadgen.power.nvml import NvmlSource; import fake_nvml as f\n"
        "d = ctypes.CDLL('libnvidia-ml.so.1'); d.fake_set_time.argtypes = [ctypes.c_double]\n"
        "d.fake_now.restype = d.fake_wall.restype = ctypes.c_double; clock.now = d.fake_now\n"
        "hung = f.script([f.Board(counter_ret=10, fields_ret=10)]).encode(); error = None\n"
        "s = NvmlSource.open(wall=d.fake_wall); s.read(); d.fake_configure(hung)\n"
        "try: s.read()\n"
        "except PowerError as exc: error = str(exc)\n"
        "d.fake_configure(f.script([f.Board()]).encode()); d.fake_set_time(1.5)\n"
        "print(json.dumps([error, len(s.read()), s.warnings]))"
    )
    error, readings, warnings = json.loads(python(library, code, [Board()]))
    assert "Timeout: the board hangs" in error and readings == 3
    assert "answers again after a gap" in warnings[-1] and len(warnings) == 2


def test_a_process_whose_name_is_no_text_has_none(library: Path) -> None:
    got = drive(library, [Board(processes=((255, 7), (77, 8)))], times=[0.0])
    assert [(p["pid"], p["name"]) for p in got.processes["gpu0"]] == [(77, "/opt/process-77"), (255, None)]


def test_an_old_driver_lacks_functions_and_is_read_with_those_it_has(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Without version 3 of the processes, nvidia-ml-py raises what is no NVMLError."""
    newer = (
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetC2cModeInfoV",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetArchitecture",
    )
    old = build(tmp_path_factory.mktemp("old"), without=newer)
    got = drive(old, [Board(low=150, reasons=4, processes=((77, 8),))], times=[0.0, 0.1])
    assert methods(got) == [("gpu0", "counter"), ("gpu0.average", "average")]
    assert got.series("gpu0.average")[-1][1] == 150.0 and not got.warnings
    assert (got.states[0]["temperature_c"], got.states[0]["event_reasons"]) == (41, 4)
    assert [p["pid"] for p in got.processes["gpu0"]] == [77]


def test_the_truth_of_the_tests_is_a_sum_over_edges() -> None:
    """By hand: 0.3 of 2 s at 400 W from 0.4 on, else 100 W."""
    assert SQUARE.energy_j(0.0, 2.0) == pytest.approx(0.6 * 400 + 1.4 * 100)
    assert SQUARE.energy_j(0.4, 1.0) == pytest.approx(240.0)
    assert SQUARE.energy_j(0.9, 1.2) == pytest.approx(0.1 * 400 + 0.2 * 100)
    assert (SQUARE.power_w(0.3), SQUARE.power_w(0.5), SQUARE.power_w(1.0)) == (100, 400, 100)
    step = Board(low=10, high=20, step=1.0)
    assert step.energy_j(0.0, 3.0) == pytest.approx(50.0) and step.energy_j(2.0, 3.0) == pytest.approx(20.0)
    assert [step.power_w(t) for t in (0.5, 1.0, 1.5)] == [10, 20, 20]
