"""NVIDIA boards: the real nvidia-ml-py on a fake driver; what of a board is read, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import (
    DRIVER_NOT_LOADED,
    MODULE_COUNTER,
    NO_COUNTER,
    NO_PERMISSION,
    NOT_SUPPORTED,
    PLAIN_PAIR,
    REPO,
    Board,
    Driven,
    Host,
    build,
    drive,
)


def methods(driven: Driven) -> list[tuple[str, str]]:
    return [(d["name"], d["method"]) for d in driven.domains]


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
    assert got.said("MIG", "GPU-20000000", "turn MIG off")
    assert got.said("gpu1", "no energy counter")
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
    assert got.said("gpu2", "who computes on it is not known", "run as a user", "MIG")


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
    assert got.said("index 0 is not read", "run as a user who may read /dev/nvidia*")


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
    assert got.said("gpu0: ", "GH200", "whole module", "gpu0.module_energy", "add no CPU energy")


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
