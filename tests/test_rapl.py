"""RAPL counters on a fake powercap tree, in a time that the test moves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Time
from powercap import EPYC_RANGE_UJ, INTEL_RANGE_UJ, Powercap, two_socket_intel

from analysis.energy import curve
from analysis.run import Series
from loadgen.errors import PowerError
from loadgen.power.rapl import RaplSource


def opened(tree: Powercap) -> RaplSource:
    return RaplSource.open(tree.root, sleep=tree.settle)


def energies(source: RaplSource) -> dict[str, float]:
    found = {}
    for reading in source.read():
        assert reading.energy_j is not None and reading.power_w is None
        found[reading.domain] = reading.energy_j
    return found


def one_socket(root: Path, **zone: float) -> Powercap:
    tree = Powercap(root)
    tree.zone("intel-rapl:0", "package-0", **zone)  # type: ignore[arg-type]
    return tree


def refusal(root: Path, tree: Powercap | None = None) -> str:
    with pytest.raises(PowerError) as caught:
        RaplSource.open(root, sleep=(lambda _: None) if tree is None else tree.settle)
    return str(caught.value)


def test_two_intel_packages_and_their_memory_by_name_and_nothing_twice(tmp_path: Path, time: Time) -> None:
    tree = two_socket_intel(tmp_path)
    source = opened(tree)
    domains = source.domains()
    assert [d.name for d in domains] == ["cpu0.package", "cpu0.dram", "cpu1.package", "cpu1.dram"]
    assert {d.method for d in domains} == {"counter"} and all("wraps at" in d.note for d in domains)
    before = energies(source)
    time.now_s += 1
    tree.add(70.0, "intel-rapl:1")  # package-0
    tree.add(50.0, "intel-rapl:0")  # package-1
    tree.add(7.0, "intel-rapl:1:2")
    tree.add(5.0, "intel-rapl:0:2")
    tree.add(500.0, "intel-rapl:2", "intel-rapl:0:0", "intel-rapl:1:1")  # psys, core, uncore
    after = energies(source)
    moved = {name: after[name] - before[name] for name in after}
    assert moved == pytest.approx(
        {"cpu0.package": 70.0, "cpu0.dram": 7.0, "cpu1.package": 50.0, "cpu1.dram": 5.0}
    )
    assert source.warnings == []


def test_amd_has_a_package_with_cores_and_no_memory(tmp_path: Path, time: Time) -> None:
    tree = one_socket(tmp_path, range_uj=EPYC_RANGE_UJ)
    tree.zone("intel-rapl:0:0", "core", range_uj=EPYC_RANGE_UJ)
    source = opened(tree)
    assert [d.name for d in source.domains()] == ["cpu0.package"]
    assert "wraps at 65532.6 J" in source.domains()[0].note


def test_the_dies_of_a_package_add_up(tmp_path: Path, time: Time) -> None:
    tree = Powercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0-die-0", start_j=200_000.0)
    tree.zone("intel-rapl:1", "package-0-die-1", start_j=3.0)
    source = opened(tree)
    assert [d.name for d in source.domains()] == ["cpu0.package"]
    before = energies(source)["cpu0.package"]
    time.now_s += 1
    tree.add(30.0, "intel-rapl:0")
    tree.add(12.0, "intel-rapl:1")
    assert energies(source)["cpu0.package"] - before == pytest.approx(42.0)


def test_the_second_face_of_the_same_counter_is_not_added(tmp_path: Path, time: Time) -> None:
    tree = one_socket(tmp_path)
    tree.zone("intel-rapl-mmio:0", "package-0")
    source = opened(tree)
    before = energies(source)["cpu0.package"]
    time.now_s += 1
    tree.add(40.0, "intel-rapl:0")
    tree.add(41.0, "intel-rapl-mmio:0")
    assert energies(source)["cpu0.package"] - before == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("range_uj", "power_w", "hours"), [(INTEL_RANGE_UJ, 250.0, 0.25), (EPYC_RANGE_UJ, 250.0, 0.2)]
)
def test_wrapped_counters_integrate_to_the_truth(
    tmp_path: Path, time: Time, range_uj: int, power_w: float, hours: float
) -> None:
    """At 250 W the ranges last 17.5 and 4.4 minutes: one domain wraps, 1 to 3 times, the other does not."""
    tree = Powercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0", start_j=range_uj * 1e-6 - 1000.0, range_uj=range_uj)
    tree.zone("intel-rapl:1", "package-1", start_j=5.0)
    source = opened(tree)
    wraps = tree.energy_j["intel-rapl:0"] // (range_uj * 1e-6)
    rows = []
    rng = np.random.default_rng(1)
    truth_j = [dict(tree.energy_j)]
    rows.append(energies(source) | {"t": time.now_s})
    for step_s in rng.uniform(0.5, 9.5, int(hours * 3600 / 5)):
        time.now_s += step_s
        tree.add(power_w * step_s, "intel-rapl:0")
        tree.add(60.0 * step_s, "intel-rapl:1")
        truth_j.append(dict(tree.energy_j))
        rows.append(energies(source) | {"t": time.now_s})
    assert tree.energy_j["intel-rapl:0"] // (range_uj * 1e-6) - wraps >= 1
    t_s = np.array([row["t"] for row in rows])
    for domain, zone in (("cpu0.package", "intel-rapl:0"), ("cpu1.package", "intel-rapl:1")):
        series = Series(
            next(d for d in source.domains() if d.name == domain),
            t_s,
            np.array([row[domain] for row in rows]),
            True,
        )
        total_j = curve(series).between(t_s[0], t_s[-1])
        assert total_j == pytest.approx(truth_j[-1][zone] - truth_j[0][zone], abs=1e-3)
    # Over any window: constant power is found everywhere.
    start_s, end_s = t_s[0] + 33.3, t_s[-1] - 77.7
    package = Series(source.domains()[0], t_s, np.array([row["cpu0.package"] for row in rows]), True)
    assert curve(package).between(start_s, end_s) == pytest.approx(power_w * (end_s - start_s), rel=1e-6)


@pytest.mark.parametrize("root", ["class", "devices", "devices/intel-rapl"])
def test_zones_in_one_another_are_found_as_those_side_by_side(tmp_path: Path, time: Time, root: str) -> None:
    """As the kernel has them: links side by side in /sys/class/powercap, into a tree of zones in zones."""
    tree = two_socket_intel(tmp_path / "class")
    parts = {key: key.split(":") for key in ["intel-rapl", *sorted(tree.energy_j)]}
    for key, words in parts.items():
        inside = [":".join(words[: k + 1]) for k in range(len(words))]
        place = (tmp_path / "devices").joinpath(*inside)
        place.parent.mkdir(exist_ok=True)
        (tree.root / key).rename(place)
        (tree.root / key).symlink_to(place)
    source = RaplSource.open(tmp_path / root, sleep=tree.settle)
    before = energies(source)
    assert list(before) == ["cpu0.package", "cpu0.dram", "cpu1.package", "cpu1.dram"]
    time.now_s += 1
    tree.add(1.0)
    tree.add(6.0, "intel-rapl:1:2")
    moved = {name: value - before[name] for name, value in energies(source).items()}
    assert moved == pytest.approx({"cpu0.package": 1, "cpu0.dram": 7, "cpu1.package": 1, "cpu1.dram": 1})


def test_no_tree_says_where_one_would_be(tmp_path: Path) -> None:
    text = refusal(tmp_path / "powercap")
    assert "there is no" in text and "virtual machine or container" in text and "power.cpu_tdp_w" in text


@pytest.mark.parametrize("how", ["empty", "dangling"])
def test_a_masked_tree_says_how_to_show_it(tmp_path: Path, how: str) -> None:
    if how == "dangling":  # the runtime hides what /sys/class/powercap points to
        (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "hidden" / "intel-rapl:0")
    text = refusal(tmp_path)
    assert "masked" in text and "systempaths=unconfined" in text and "modprobe" in text


def test_a_platform_zone_alone_is_no_package(tmp_path: Path) -> None:
    tree = Powercap(tmp_path)
    tree.zone("intel-rapl:0", "psys")
    assert "no zone" in (text := refusal(tmp_path, tree)) and "psys" in text


def deny(monkeypatch: pytest.MonkeyPatch, *denied: Path) -> None:
    """EACCES also where the tests run as root, who may read everything."""
    real = Path.read_text

    def read_text(self: Path, *words: str, **options: str) -> str:
        if self in denied:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)


def test_no_permission_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = two_socket_intel(tmp_path)
    file = tmp_path / "intel-rapl:1" / "energy_uj"
    deny(monkeypatch, file)
    text = refusal(tmp_path, tree)
    assert f"permission denied on {file}" in text
    assert all(words in text for words in ("Linux 5.10", "run as root", "chmod o+r", "udev"))


def test_memory_that_cannot_be_read_is_left_out_and_said(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = two_socket_intel(tmp_path)
    deny(monkeypatch, tmp_path / "intel-rapl:1:2" / "energy_uj")
    source = opened(tree)
    assert [d.name for d in source.domains()] == ["cpu0.package", "cpu1.package", "cpu1.dram"]
    assert len(source.warnings) == 1 and source.warnings[0].startswith("power: cpu0.dram: permission denied")


@pytest.mark.parametrize("start_j", [0.0, 123.0])
def test_one_package_that_stands_still_refuses_all(tmp_path: Path, time: Time, start_j: float) -> None:
    tree = one_socket(tmp_path, start_j=start_j)
    tree.zone("intel-rapl:1", "package-1")
    tree.frozen = {"intel-rapl:0"}
    text = refusal(tmp_path, tree)
    assert f"cpu0.package: the counter under {tmp_path}/intel-rapl:0 stands still" in text
    assert "bare host" in text


def test_memory_that_stands_still_is_left_out(tmp_path: Path, time: Time) -> None:
    tree = one_socket(tmp_path)
    tree.zone("intel-rapl:0:0", "dram", start_j=0.0)
    tree.frozen = {"intel-rapl:0:0"}
    source = opened(tree)
    assert [d.name for d in source.domains()] == ["cpu0.package"]
    assert "cpu0.dram: the counter" in source.warnings[0] and "left out" in source.warnings[0]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("max_energy_range_uj", "0", "wraps cannot be corrected"),
        ("max_energy_range_uj", None, "max_energy_range_uj is missing"),
        ("energy_uj", None, "energy_uj is missing"),
        ("energy_uj", "", "expected microjoules"),
    ],
)
def test_a_damaged_zone_is_refused(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    tree = one_socket(tmp_path)
    path = tmp_path / "intel-rapl:0" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert words in refusal(tmp_path, tree)


def test_a_counter_that_freezes_leaves_a_gap_never_a_flat_line(tmp_path: Path, time: Time) -> None:
    tree = one_socket(tmp_path)
    tree.zone("intel-rapl:1", "package-1")
    source = opened(tree)
    source.read()
    read = {"cpu0.package": 0, "cpu1.package": 0}
    for _ in range(50):  # 5 s
        time.now_s += 0.1
        tree.add(10.0, "intel-rapl:1")
        for name in energies(source):
            read[name] += 1
    assert read["cpu1.package"] == 50 and read["cpu0.package"] <= 4
    assert len(source.warnings) == 1 and "cpu0.package: the counter has stood still" in source.warnings[0]
    tree.add(5.0)
    assert "cpu0.package" in energies(source)


def test_a_reset_is_not_taken_for_a_wrap(tmp_path: Path, time: Time) -> None:
    """As a wrap it would be 162 kJ in 0.1 s."""
    tree = one_socket(tmp_path, start_j=100_000.0)
    tree.zone("intel-rapl:1", "package-1")
    source = opened(tree)
    source.read()
    tree.energy_j["intel-rapl:0"] = 0.0
    for _ in range(3):
        time.now_s += 0.1
        tree.add(10.0)
        assert list(energies(source)) == ["cpu1.package"]
    assert len(source.warnings) == 1 and "a reset, not a wrap" in source.warnings[0]


def test_a_gap_that_may_hide_a_second_wrap_ends_the_series(tmp_path: Path, time: Time) -> None:
    """EPYC's 65.5 kJ: nobody read for 5 minutes at 250 W, which is 1.1 wraps."""
    tree = one_socket(tmp_path, range_uj=EPYC_RANGE_UJ)
    source = opened(tree)
    time.now_s += 300.0
    tree.add(300.0 * 250.0)
    with pytest.raises(PowerError, match="more than one wrap"):
        source.read()
    with pytest.raises(PowerError, match="no counter answered"):
        source.read()


def test_a_zone_that_vanishes_is_a_gap_and_one_warning(tmp_path: Path, time: Time) -> None:
    tree = two_socket_intel(tmp_path)
    source = opened(tree)
    shutil.rmtree(tmp_path / "intel-rapl:1:2")
    for _ in range(2):
        time.now_s += 0.1
        tree.add(1.0, "intel-rapl:0", "intel-rapl:1", "intel-rapl:0:2")
        assert list(energies(source)) == ["cpu0.package", "cpu1.package", "cpu1.dram"]
    assert len(source.warnings) == 1 and source.warnings[0].startswith("power: cpu0.dram: ")
    source.close()
    source.close()
