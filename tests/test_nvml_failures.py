"""Boards that are lost, hang, come back or are reset under nvidia-ml-py, and a driver that is reloaded."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from fake_nvml import (
    Board,
    Host,
    drive,
    python,
)


def test_a_counter_that_stands_still_is_named_once_and_never_invented(library: Path) -> None:
    got = drive(library, [Board(low=200, still=2.0), Board(low=200), Board(low=0, still=0.0)], seconds=6)
    lines = got.said("stood still")
    assert len(lines) == 1 and "gpu0: " in lines[0] and "its power is integrated instead" in lines[0]
    assert got.series("gpu0")[-1][1] == 400.0
    assert got.series("gpu0.instant")[-1][1] == 200.0


def test_a_counter_is_not_called_stuck_before_a_second_has_passed(library: Path) -> None:
    board = Board(low=200, still=2.0)
    assert not drive(library, [board], times=[1.0, 2.0, 2.5, 2.99]).said("stood still")
    assert drive(library, [board], times=[1.0, 2.0, 2.5, 3.01]).said("stood still")


def test_a_lost_board_leaves_a_gap_and_one_warning_and_the_others_go_on(library: Path) -> None:
    got = drive(library, [Board(lost=2.0), Board(low=300)], seconds=6)
    assert max(t for t, _ in got.series("gpu0")) == pytest.approx(1.95)
    assert len(got.series("gpu1")) == len(got.times) and not got.errors
    assert got.said("gpu0: ") == got.said("fallen off the bus") and len(got.warnings) == 1
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
    assert len(got.said("gpu0: ", "answers again")) == 1 and len(got.warnings) == 2


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
    assert got.said("gpu0: ", "answers again") and got.said("gpu1: ", "answers again")


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
