"""A fake NVIDIA driver for tests: boards of known power behind the real nvidia-ml-py.

`build` compiles tests/nvml/fake_driver.c; `drive` reads boards through
`NvmlSource` in a process of its own, in simulated time; `environment` is what any
process needs to see the boards, also in real time. `Board.energy_j` and
`Board.power_w` are the truth, computed here from the signal's edges alone.

    library = build(tmp_path)
    board = Board(low=100, high=400, period=2.0)
    driven = drive(library, [board], seconds=10, interval_s=0.05, jitter_s=0.01)
    driven.series("gpu0")               # [(t_s, J), ...]
    board.energy_j(2.0, 8.0)            # J

In real time the boards' time 0 is when `environment(..., real_time=True)` was
called: `time.monotonic()` less the environment's ``FAKE_ORIGIN_S``.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

_servers: dict[Path, subprocess.Popen[str]] = {}

REPO = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).resolve().parent / "nvml" / "fake_driver.c"

NO_COUNTER, TRUE_COUNTER, SENSOR_COUNTER, MODULE_COUNTER = 0, 1, 2, 3
"""Kinds of `Board.counter`; SENSOR: the sum of published power times the period."""
PUBLISHED, CALLED, UNSTAMPED = 0, 1, 2
"""What a field's own time stamp is (`Board.stamp`): its publication's, the call's, or 0."""
UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, LOST = 1, 3, 4, 9, 15
"""Return codes of nvml.h, for the ``*_ret`` fields."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """One board: W and s on the fake's clock. ``None`` leaves the driver's own value.

    Signal: ``low``; from ``step`` on ``high``; or with a ``period`` ``high`` for the
    first ``duty`` of each, beginning at ``phase``. Sensor: every ``publish`` (0:
    continuously) from ``publish_phase`` it shows the mean of the last ``window``
    (0.025 of 0.1 is the part-time sensor of A100 and H100, 0.1 sees everything);
    ``average`` is the mean of what it showed in so many seconds. Counter: one of
    the kinds above, starting at ``offset`` J, standing ``still`` or ``reset`` to 0
    from an instant on. The board is ``lost`` from an instant to ``back``, where it
    needs new handles. ``memory`` W, and ``module`` W beyond the board's own, answer
    when ``memory_ret`` and ``module_ret`` are 0. ``processes``: (pid, bytes).
    """

    uuid: str | None = None
    name: str | None = None
    low: float = 100.0
    high: float | None = None
    step: float = math.inf
    period: float = 0.0
    duty: float = 0.5
    phase: float = 0.0
    publish: float = 0.1
    publish_phase: float = 0.0
    window: float = 0.1
    average: float = 1.0
    counter: int = TRUE_COUNTER
    counter_ret: int = 0
    offset: float = 0.0
    still: float = math.inf
    reset: float = math.inf
    instant_ret: int = 0
    average_ret: int = 0
    usage_ret: int = 0
    fields_ret: int = 0
    memory_ret: int = NOT_SUPPORTED
    module_ret: int = NOT_SUPPORTED
    memory: float = 0.0
    module: float = 0.0
    stamp: int = PUBLISHED
    stamp_off: float = 0.0
    lost: float = math.inf
    back: float = math.inf
    handle_ret: int = 0
    mig: int = -1
    c2c: int = -1
    limit: float = 700.0
    temperature: float = 41.0
    sm: float = 1980.0
    mem: float = 2619.0
    pstate: int = 0
    reasons: int = 0
    ecc: int = 0
    ecc_mode: int = 1
    persistence: int = 1
    arch: int = 9
    state_ret: int = 0
    processes_ret: int = 0
    processes: tuple[tuple[int, int], ...] = ()

    def words(self) -> str:
        """As the driver reads it."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        known["high"] = self._high_w
        known["name"] = None if self.name is None else self.name.replace(" ", "_")
        known["processes"] = ",".join(f"{pid}:{size}" for pid, size in self.processes) or None
        return " ".join(f"{key}={value}" for key, value in known.items() if value is not None)

    @property
    def _high_w(self) -> float:
        return self.low if self.high is None else self.high

    def power_w(self, t_s: float) -> float:
        """The signal."""
        at = [edge for edge in self._edges(t_s - max(self.period, 1.0), t_s) if edge[0] <= t_s]
        return at[-1][1]

    def energy_j(self, start_s: float, end_s: float) -> float:
        """What the board really took in [start, end]: its power summed from edge to edge."""
        edges = self._edges(start_s, end_s)
        ends = [t for t, _ in edges[1:]] + [end_s]
        return math.fsum(
            w * (min(b, end_s) - max(a, start_s))
            for (a, w), b in zip(edges, ends, strict=True)
            if min(b, end_s) > max(a, start_s)
        )

    def _edges(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """(instant, power from then on), beginning at or before ``start_s``."""
        if self.period <= 0:
            first = (start_s, self.low if start_s < self.step else self._high_w)
            return [first, (self.step, self._high_w)] if start_s < self.step <= end_s else [first]
        edges: list[tuple[float, float]] = []
        k = math.floor((start_s - self.phase) / self.period) - 1
        while (rise_s := self.phase + k * self.period) <= end_s:
            edges += [(rise_s, self._high_w), (rise_s + self.duty * self.period, self.low)]
            k += 1
        return edges


@dataclass(frozen=True, kw_only=True)
class Host:
    """The driver: ``init`` is nvmlInit's code, ``call`` the seconds each call takes (simulated time
    only), unloaded from ``unload`` to ``reload``, after which indices are in ``reverse``."""

    init: int = 0
    call: float = 0.0
    unload: float = math.inf
    reload: float = math.inf
    reverse: int = 0

    def words(self) -> str:
        """As the driver reads it."""
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


PLAIN_PAIR = (
    Board(low=100, high=300, period=2.0, average_ret=NOT_SUPPORTED),
    Board(low=70, counter=NO_COUNTER, fields_ret=NOT_SUPPORTED, mig=1),
)
"""A modern board with a square wave, and an old one in MIG mode that only tells its average power."""


@dataclass(frozen=True)
class Driven:
    """What a source gave. ``error``: why it could not be opened; then the rest is empty.

    ``reads``: of each read a list of (t_s, domain, power_w, energy_j), in ``times``' order;
    ``states`` and ``processes``: of the last instant; ``errors``: (t_s, text) of reads that raised.
    """

    error: str | None = None
    domains: list[dict[str, Any]] = field(default_factory=list)
    boards: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reads: list[list[tuple[float, str, float | None, float | None]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    processes: dict[str, Any] = field(default_factory=dict)
    errors: list[tuple[float, str]] = field(default_factory=list)

    @property
    def readings(self) -> list[Any]:
        """All as `loadgen.types.Reading`."""
        from loadgen.types import Reading

        return [Reading(t, name, power_w=w, energy_j=j) for read in self.reads for t, name, w, j in read]

    def series(self, domain: str) -> list[tuple[float, float]]:
        """(t_s, J or W) of one domain."""
        return [
            (r.t_s, r.power_w if r.energy_j is None else r.energy_j)
            for r in self.readings
            if r.domain == domain
        ]

    def said(self, *words: str) -> list[str]:
        """The warnings that hold all of ``words``."""
        return [line for line in self.warnings if all(word in line for word in words)]


def build(folder: Path, without: Sequence[str] = ()) -> Path:
    """Compiles the driver into ``folder``, which is then the library's path. Skips the test without gcc.

    ``without``: functions that an old driver lacks.
    """
    import pytest

    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs gcc to build the fake NVML library")
    library = str(folder / "libnvidia-ml.so.1")
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    options += [f"-D{name}=absent_{name}" for name in without]
    subprocess.run([compiler, *options, "-o", library, str(SOURCE), "-lm"], check=True)
    return folder


def script(boards: Sequence[Board], host: Host | None = None) -> str:
    """The text of FAKE_NVML."""
    return ";".join([(host or Host()).words(), *(board.words() for board in boards)])


def environment(
    library: Path, boards: Sequence[Board], host: Host | None = None, *, real_time: bool = False
) -> dict[str, str]:
    """This process's environment with the fake driver in it. ``real_time``: the boards' clock is
    CLOCK_MONOTONIC, their time 0 now."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAKE_", "CUDA_"))}
    kept |= {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(REPO), "FAKE_NVML": script(boards, host)}
    if real_time:
        kept |= {"FAKE_REAL_TIME": "1", "FAKE_ORIGIN_S": repr(time.monotonic())}
    return kept


def read_times(
    seconds: float, interval_s: float, *, jitter_s: float = 0.0, start_s: float = 0.0, seed: int = 1
) -> list[float]:
    """Instants of reads: start + k interval, each up to ``jitter_s`` late, as a busy host is."""
    late = random.Random(seed)
    n = round(seconds / interval_s)
    return [start_s + k * interval_s + jitter_s * late.random() for k in range(n + 1)]


def drive(
    library: Path,
    boards: Sequence[Board],
    *,
    host: Host | None = None,
    seconds: float = 10.0,
    interval_s: float = 0.05,
    jitter_s: float = 0.0,
    start_s: float = 0.0,
    seed: int = 1,
    times: Sequence[float] | None = None,
    gpus: Sequence[str | int] | None = None,
    extra_environment: Mapping[str, str] | None = None,
) -> Driven:
    """Opens `NvmlSource` at the first instant and reads it at each, `clock.now()` being the fake's time."""
    if times is None:
        times = read_times(seconds, interval_s, jitter_s=jitter_s, start_s=start_s, seed=seed)
    job = {"times": list(times), "gpus": None if gpus is None else list(gpus)}
    code = f"import fake_nvml; fake_nvml.read_boards({json.dumps(job)!r})"
    return Driven(**json.loads(python(library, code, boards, host, extra_environment=extra_environment)))


def python(
    library: Path,
    code: str,
    boards: Sequence[Board],
    host: Host | None = None,
    *,
    real_time: bool = False,
    extra_environment: Mapping[str, str] | None = None,
) -> str:
    """What ``code`` prints in a process of its own that has these boards; it must end well.

    The process is forked off one that has imported loadgen already, which takes 10 ms instead of 0.5 s.
    """
    server = _servers.get(library)
    if server is None:
        env = environment(library, ())
        env["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "tests")])
        server = _servers[library] = subprocess.Popen(
            [sys.executable, "-c", "import fake_nvml; fake_nvml.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        atexit.register(server.communicate)
    fakes = environment(library, boards, host, real_time=real_time) | dict(extra_environment or {})
    env = {k: v for k, v in fakes.items() if os.environ.get(k) != v and k not in ("PYTHONPATH",)}
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps({"code": code, "environment": env}) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    assert answer["status"] == 0, answer["stderr"]
    return str(answer["stdout"])


def serve() -> None:
    """Forks a process for each line {"code", "environment"} and says what came of it."""
    import pynvml  # noqa: F401  (loaded once for all)

    import loadgen.doctor
    import loadgen.power.nvml  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            if (child := os.fork()) == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.environ.update(job["environment"])
                status = 1
                try:
                    exec(job["code"], {})
                    status = 0
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            err.seek(0)
            said = {"stdout": out.read().decode(), "stderr": err.read().decode(), "status": status}
        print(json.dumps(said), flush=True)


def read_boards(job_json: str) -> None:
    """What `drive` runs: prints a `Driven`."""
    import ctypes

    from loadgen import clock
    from loadgen.errors import PowerError
    from loadgen.power.nvml import NvmlSource

    job = json.loads(job_json)
    driver = ctypes.CDLL("libnvidia-ml.so.1")
    driver.fake_set_time.argtypes = [ctypes.c_double]
    driver.fake_now.restype = driver.fake_wall.restype = ctypes.c_double
    clock.now = driver.fake_now
    times: list[float] = job["times"]
    driver.fake_set_time(times[0] if times else 0.0)
    try:
        source = NvmlSource.open(job["gpus"], wall=driver.fake_wall)
    except PowerError as exc:
        json.dump(asdict(Driven(error=str(exc))), sys.stdout)
        return
    found = Driven(times=times, domains=[asdict(d) for d in source.domains()], warnings=source.warnings)
    for t_s in times:
        driver.fake_set_time(t_s)
        try:
            found.reads.append([(r.t_s, r.domain, r.power_w, r.energy_j) for r in source.read()])
        except PowerError as exc:
            found.errors.append((t_s, str(exc)))
    found.states.extend(asdict(state) for state in source.states())
    for board, there in source.processes().items():
        found.processes[board] = None if there is None else [asdict(p) for p in there]
    source.close()
    source.close()
    json.dump(asdict(replace(found, boards=list(source.boards))), sys.stdout)
