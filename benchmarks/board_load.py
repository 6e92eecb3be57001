"""Loads for benchmarks/board_sensor.py: steady work or square waves, in a process of their own.

python benchmarks/board_load.py cuda   # the torch process: a JSON job a line on stdin
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Poll = Callable[[float], dict[str, Any]]
"""Polls the board until an instant of ``time.monotonic()``; gives its state half-way."""


class Done(NamedTuple):
    """``loaded_s``: begin and end of each load; ``state``: the board's half-way; ``work``: rates."""

    loaded_s: list[tuple[float, float]]
    state: dict[str, Any]
    work: dict[str, float]


class LoadError(Exception):
    """The load could not go on; what was polled before stays."""


class TorchLoad:
    """A process that multiplies matrices on ``device``, so that it cannot delay a poll.

    ``work``: the steady loads it knows; empty where torch or the device is missing.
    """

    def __init__(self, device: str, uuid: str) -> None:
        # CUDA counts boards otherwise than NVML; both know the UUID.
        env = os.environ | {"CUDA_VISIBLE_DEVICES": uuid}
        self._child = subprocess.Popen(
            [sys.executable, __file__, device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.work: tuple[str, ...] = ("matmul", "decode") if self._answer().get("ready") else ()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):  # libraries talk on stdout too
                return dict(json.loads(line))
        return {}

    def run(self, poll: Poll, name: str, period_s: float | None, seconds: float) -> Done:
        """Loads the board for ``seconds``, or in the first half of each period, with ``poll`` meanwhile.

        Raises LoadError when the process has died.
        """
        assert self._child.stdin is not None
        job = {"kind": "matmul" if period_s else name, "period_s": period_s, "seconds": seconds}
        end_s = time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(job) + "\n")
            self._child.stdin.flush()
        state = poll(end_s)
        said = self._answer()
        if not said:
            raise LoadError(f"the load's process ended in {name!r}; what it said stands above")
        return Done([(on_s, off_s) for on_s, off_s in said.pop("loaded_s")], state, said)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._child.kill()
        self._child.communicate()


class CommandLoad:
    """A command that loads the board, started once, stopped and continued (SIGSTOP, SIGCONT).

    Raises LoadError when it cannot be started.
    """

    work: tuple[str, ...] = ("command",)

    def __init__(self, command: str) -> None:
        try:
            self._child = subprocess.Popen(shlex.split(command), stdout=sys.stderr, start_new_session=True)
        except OSError as exc:
            raise LoadError(f"the command cannot be started: {exc}") from exc

    def run(self, poll: Poll, name: str, period_s: float | None, seconds: float) -> Done:
        """As `TorchLoad.run`. Raises LoadError when the command has ended by itself."""
        start_s = time.monotonic()
        end_s, half_s = start_s + seconds, seconds if period_s is None else period_s / 2
        edges: list[tuple[float, float]] = []
        state: dict[str, Any] = {}
        while (on_s := time.monotonic()) < end_s:
            if self._child.poll() is not None:
                raise LoadError(f"the command ended in {name!r} with status {self._child.returncode}")
            os.killpg(self._child.pid, signal.SIGCONT)
            state = poll(min(on_s + half_s, end_s))
            os.killpg(self._child.pid, signal.SIGSTOP)
            edges.append((on_s, time.monotonic()))
            if period_s is not None:
                poll(min(on_s + period_s, end_s))
        return Done(edges, state, {})

    def close(self) -> None:
        """Ends the command and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def load_child(device: str) -> None:
    """Takes {"kind", "period_s", "seconds"} a line, runs it, says what it did; ends with its input."""
    try:
        import torch
    except ImportError:
        print(json.dumps({"ready": False}), flush=True)
        return
    on_board = device == "cuda"
    if on_board and not torch.cuda.is_available():
        print(json.dumps({"ready": False}), flush=True)
        return
    finish: Callable[[], object] = torch.cuda.synchronize if on_board else int
    # 2 GiB is far beyond every cache; 2^31 elements and more are beyond some kernels' indices.
    n, rows = (4096, 2**17) if on_board else (256, 2**9)
    made = {"device": device, "dtype": torch.bfloat16}
    a, b = torch.randn(n, n, **made), torch.randn(n, n, **made)
    weights, vector = torch.randn(rows, 8192, **made), torch.randn(8192, **made)
    loads: dict[str, tuple[Callable[[], object], float, float]] = {
        "matmul": (lambda: torch.mm(a, b), 2.0 * n**3, 6.0 * n * n),
        "decode": (lambda: torch.mv(weights, vector), 2.0 * rows * 8192, 2.0 * rows * 8192),
    }
    for step, _, _ in loads.values():
        step()
    finish()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        step, flop, moved_bytes = loads[job["kind"]]
        end_s = time.monotonic() + job["seconds"]
        period_s = job["period_s"] or 2 * job["seconds"]
        edges, count = [], 0
        due_s = time.monotonic()
        while due_s < end_s:
            time.sleep(max(0.0, due_s - time.monotonic()))
            on_s = time.monotonic()
            while time.monotonic() < min(due_s + period_s / 2, end_s):
                for _ in range(4):
                    step()
                finish()  # a few ms of queue at most, so that the edges are true
                count += 4
            edges.append((on_s, time.monotonic()))
            due_s += period_s
        on_for_s = sum(off_s - on_s for on_s, off_s in edges)
        rates = {
            "tflop_per_s": count * flop / on_for_s / 1e12,
            "gb_per_s": count * moved_bytes / on_for_s / 1e9,
        }
        print(json.dumps({"loaded_s": edges} | rates), flush=True)


if __name__ == "__main__":
    load_child(sys.argv[1])
