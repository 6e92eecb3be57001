"""Meters after a restart of the sampler: they go on, or show a reset where that cannot be known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Time
from powercap import EPYC_RANGE_UJ, Powercap
from sampled import HZ, Scripted, events, run, series, status

from loadgen import clock
from loadgen.power import local
from loadgen.power.host import CpuEstimate, RamEstimate
from loadgen.power.local import Last, openings
from loadgen.power.rapl import RaplSource
from loadgen.sidecar.sampler import last_energies
from loadgen.types import Reading


def test_estimates_go_on_after_a_restart_and_never_backwards(tmp_path: Path) -> None:
    """10 W of memory also in the pause between, which is 20 s."""
    parts = {
        "ram": lambda resume: RamEstimate(16, arm=False, resume=tuple(resume.get("ram", ()))[:2] or None)
    }
    run(tmp_path, parts, 10.0)
    run(tmp_path, parts, 10.0, begin_s=30.0)
    values = [value for _, value in series(tmp_path, "ram")]
    assert values == pytest.approx([10 * k / HZ for k in [*range(201), *range(600, 801)]])


def test_a_cpu_estimate_goes_on_from_its_joules_and_adds_nothing_for_the_pause(
    tmp_path: Path, time: Time
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 0 100 0 0 0 0 0 0\n")
    source = CpuEstimate(100.0, tmp_path, resume=(900.0, 5000.0))
    assert source.read()[0].energy_j == 5000.0
    time.now_s += 10
    stat.write_text("cpu 150 0 0 150 0 0 0 0 0 0\n")
    assert source.read()[0].energy_j == pytest.approx(5000 + 100 * 10 / 2)


@pytest.mark.parametrize(
    ("start_j", "pause_s", "sound"),
    [
        (10.0, 20.0, True),
        (EPYC_RANGE_UJ * 1e-6 - 1500.0, 20.0, True),  # wraps in the pause
        (EPYC_RANGE_UJ * 1e-6 - 200.0, 20.0, True),  # wrapped before it
        (10.0, 40.0, False),  # 40 s x 2 kW is more than the range: a second wrap could hide
        (60_000.0, 600.0, False),  # one wrap, to a value above the last: cannot be told from none
    ],
)
def test_rapl_goes_on_after_a_restart_or_shows_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_j: float, pause_s: float, sound: bool
) -> None:
    tree = Powercap(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", start_j=start_j, range_uj=EPYC_RANGE_UJ)
    truth: dict[float, float] = {}

    class Moving(RaplSource):
        """The counter moves by 100 W x the time since the last read, just before each."""

        def read(self) -> list[Reading]:
            now_s = clock.now()
            tree.add(100.0 * (now_s - moved[-1]))
            moved.append(now_s)
            truth[now_s] = tree.energy_j["intel-rapl:0"]
            return super().read()

    opening = SimpleNamespace(open=partial(Moving.open, sleep=tree.settle))
    monkeypatch.setattr(local, "RaplSource", opening)
    parts = {"cpu": openings(None, powercap=tree.root)["cpu"]}
    moved = [0.0]
    run(tmp_path, parts, 10.0)
    tree.add(100.0 * (pause_s - 1.0))
    moved.append(10.0 + pause_s - 1.0)
    run(tmp_path, parts, 10.0, begin_s=10.0 + pause_s)
    found = [(t_s, value) for t_s, value in series(tmp_path, "cpu0.package") if value is not None]
    steps = np.diff([value for _, value in found])
    assert len(found) == 402 and np.count_nonzero(steps < 0) == (0 if sound else 1)
    if sound:
        true_j = truth[found[-1][0]] - truth[found[0][0]]
        assert found[-1][1] - found[0][1] == pytest.approx(true_j, abs=1e-3)
    else:
        assert steps[200] < 0  # exactly at the restart


def test_the_dies_of_a_package_show_a_reset_after_a_restart(tmp_path: Path, time: Time) -> None:
    """Only their sum is known, so a wrap of one could not be told."""
    tree = Powercap(tmp_path)
    for die in (0, 1):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", start_j=50.0)
    source = RaplSource.open(tree.root, sleep=tree.settle)
    [before] = source.read()
    time.now_s += 1
    tree.add(10.0)
    [after] = RaplSource.open(
        tree.root, sleep=tree.settle, resume={"cpu0.package": (before.t_s, before.energy_j or 0.0)}
    ).read()
    assert after.energy_j is not None and before.energy_j is not None and after.energy_j < before.energy_j


def test_the_last_energies_are_each_columns_newest_number(tmp_path: Path) -> None:
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"], lambda t, n: n == "gpu1" and t > 3)}, 5.0)
    found = last_energies(tmp_path, status(tmp_path))
    assert found["gpu0"] == (pytest.approx(5.0), pytest.approx(500.0), "counter")
    assert found["gpu1"] == (pytest.approx(3.001, abs=0.051), pytest.approx(300.0, abs=5.1), "counter")
    assert last_energies(tmp_path, {})["gpu0"].method is None
    assert last_energies(tmp_path / "other", {}) == {}


def test_a_counter_in_place_of_an_estimate_shows_as_a_reset_and_so_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between restarts permissions change; joules of another method are not gone on from."""
    tree = Powercap(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", start_j=30_000.0, range_uj=EPYC_RANGE_UJ)
    monkeypatch.setattr(
        local, "RaplSource", SimpleNamespace(open=partial(RaplSource.open, sleep=tree.settle))
    )
    (tmp_path / "stat").write_text("cpu 1 0 0 1 0 0 0 0 0 0\n")
    monkeypatch.setattr(local, "CpuEstimate", lambda tdp_w, **how: CpuEstimate(tdp_w, tmp_path, **how))
    cpu = openings(None, 100.0, powercap=tree.root)["cpu"]
    now_s = clock.now()
    [counter] = cpu({"cpu0.package": Last(now_s, 29_990.0, "estimated")}).read()
    assert counter.energy_j is not None and counter.energy_j < 29_990.0
    [counter] = cpu({"cpu0.package": Last(now_s, 29_990.0, "counter")}).read()
    assert counter.energy_j is not None and counter.energy_j >= 30_000.0
    (tree.root / "intel-rapl:0" / "energy_uj").unlink()
    [estimate] = cpu({"cpu0.package": Last(now_s, 29_990.0, "counter")}).read()
    assert estimate.energy_j == 0.0
    [estimate] = cpu({"cpu0.package": Last(now_s, 29_990.0, "estimated")}).read()
    assert estimate.energy_j == 29_990.0


def test_another_board_under_the_same_name_after_a_restart_is_told(tmp_path: Path) -> None:
    for begin_s, uuid in ((0.0, "GPU-a"), (10.0, "GPU-a"), (20.0, "GPU-b")):
        source = Scripted(["gpu0"])
        source.boards = ({"domain": "gpu0", "uuid": uuid},)
        run(tmp_path, {"gpu": lambda _, source=source: source}, 2.0, begin_s)  # type: ignore[misc]
    [told] = events(tmp_path, "boards_changed")
    assert told["domains"] == ["gpu0"] and told["t_s"] == pytest.approx(20.0)
