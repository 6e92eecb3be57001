"""Fixtures that more than one test file uses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import embedded_runs
import fake_nvml
import pytest

from loadgen import clock


def pytest_configure() -> None:
    """Jobs in the background of a shell ignore Ctrl-C, and the commands that tests interrupt would too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Time:
    """`clock.now` moved by hand, in seconds."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    """The clock under the test's control."""
    moved = Time()
    monkeypatch.setattr(clock, "now", moved)
    yield moved


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVIDIA driver, compiled once for all tests."""
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `embedded_runs.mixed`; only for reading."""
    return embedded_runs.mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="session")
def fixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Constant spacing of 0.5 s; only for reading."""
    return embedded_runs.spaced(tmp_path_factory.mktemp("fixed"), "constant")


@pytest.fixture(scope="session")
def poisson_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The requests of `fixed_run`, Poisson at the same mean rate; only for reading."""
    return embedded_runs.spaced(tmp_path_factory.mktemp("poisson"), "poisson")
