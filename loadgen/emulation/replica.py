"""One replica serves its jobs: the engine, the server's limit, the client's cap, and the board's rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

import numpy as np

from loadgen.emulation.jobs import Jobs
from loadgen.emulation.served import Served
from loadgen.emulation.works import Recorder
from loadgen.errors import ConfigError
from loadgen.physics.hardware import Gpu
from loadgen.physics.transformer import StepModel
from loadgen.server.deployment import Deployment
from loadgen.server.engine import Sequence


def simulate(deployment: Deployment, jobs: Jobs, *, record: bool = False) -> Served:
    """Serves the jobs on a fresh engine, no HTTP and no clock: microseconds a request.

    As the embedded server does: beyond ``max_concurrent_requests`` a request is turned away at once, one
    that could never be scheduled too. A resting engine begins with the first request that comes, so of a
    burst the others wait for its step; a client that waited for an answer sends when the next step has
    begun. Nobody gives up waiting: requests are not timed out. ``record``
    keeps what every step did (`Served.works`). Raises ConfigError where ``record`` is asked of a power
    cap, whose steps take longer under other power constants.
    """
    return _Run(deployment, jobs, record).served()


class _Run:
    def __init__(self, deployment: Deployment, jobs: Jobs, record: bool) -> None:
        self._deployment, self._jobs = deployment, jobs
        self._recorder: Recorder | None = None
        if record:
            if not isinstance(deployment.step_model, StepModel):
                raise ConfigError(
                    "server.hardware.power_cap_w: no draws of power constants under a power cap"
                )
            self._recorder = Recorder(deployment.step_model)
        self._engine = deployment.engine(self._recorder)
        n = len(jobs)
        self._sent_s = np.full(n, np.nan)
        self._sequences: list[Sequence | None] = [None] * n
        self._held: deque[int] = deque()
        self._in_flight = self._most = self._blocks = 0

    def served(self) -> Served:
        jobs, deployment = self._jobs, self._deployment
        shards, gpu = deployment.launch.launcher.num_shard, deployment.gpu
        busy_s = busy_j = idle_j = end_s = 0.0
        for start_s, duration_s, power_w in self._steps():
            idle_j += _rest_j(gpu, start_s - end_s, first=end_s == 0.0)
            busy_s += duration_s
            busy_j += power_w * duration_s
            end_s = start_s + duration_s
        last_s = max(end_s, float(jobs.due_s[-1]))
        idle_j += _rest_j(gpu, last_s - end_s, first=end_s == 0.0)
        done = [s for s in self._sequences if s is not None]
        return Served(
            jobs,
            self._sent_s,
            np.array([np.nan if s is None else s.first_s for s in self._sequences], dtype=np.float64),
            np.array([np.nan if s is None else s.done_s for s in self._sequences], dtype=np.float64),
            np.array([0 if s is None else s.cached_tokens for s in self._sequences], dtype=np.int64),
            sum(s.preemptions for s in done),
            last_s,
            busy_s,
            shards * busy_j,
            shards * idle_j,
            self._most,
            self._blocks,
            self._engine.pool.total_blocks,
            None if self._recorder is None else self._recorder.works(),
        )

    def _steps(self) -> Iterator[tuple[float, float, float]]:
        """Start, duration and watts of one board of every work, when it is over."""
        engine, pool, recorder = self._engine, self._engine.pool, self._recorder
        due_s = [*self._jobs.due_s.tolist(), inf]
        now_s, k = 0.0, 0
        while True:
            answering = bool(self._held) and self._may_send()
            work = engine.start_leap(now_s, now_s if answering else due_s[k])
            if work is None:
                if answering:
                    self._send(self._held.popleft(), now_s)
                elif due_s[k] < inf:
                    now_s = max(now_s, due_s[k])
                    self._arrive(k, due_s[k])
                    k += 1
                else:
                    return
                continue
            if recorder is not None:
                recorder.took(work.duration_s)
            self._blocks = max(self._blocks, pool.total_blocks - pool.available_blocks)
            while self._held and self._may_send():
                self._send(self._held.popleft(), now_s)
            start_s, now_s = now_s, now_s + work.duration_s
            while due_s[k] <= now_s:
                self._arrive(k, due_s[k])
                k += 1
            for reason in engine.finish(now_s).values():
                self._in_flight -= reason is not None
            yield start_s, work.duration_s, work.power_w

    def _may_send(self) -> bool:
        cap = self._jobs.max_in_flight
        return cap is None or self._in_flight < cap

    def _arrive(self, k: int, now_s: float) -> None:
        if self._may_send():
            self._send(k, now_s)
        elif self._jobs.overflow == "queue":
            self._held.append(k)

    def _send(self, k: int, now_s: float) -> None:
        self._sent_s[k] = now_s
        limit = self._deployment.limits.max_concurrent_requests
        if limit is not None and self._in_flight >= limit:
            return
        lengths = self._jobs.lengths
        sequence = Sequence(
            k,
            int(lengths.prompt_tokens[k]),
            int(lengths.max_new_tokens[k]),
            int(lengths.reply_tokens[k]),
            prompt_ids=None if lengths.prompt_ids is None else lengths.prompt_ids[k],
        )
        try:
            self._engine.submit(sequence, now_s)
        except ValueError:
            return
        self._sequences[k] = sequence
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)


def _rest_j(gpu: Gpu, seconds: float, *, first: bool) -> float:
    """Joules of one board that rests so long after work, or (``first``) before any."""
    tail_s = 0.0 if first else min(seconds, gpu.tail_s)
    return tail_s * gpu.tail_w + (seconds - tail_s) * gpu.context_idle_w
