"""A pool of fresh processes for numbered tasks of which none depends on another.

A process is handed one number at a time, so that tasks of unequal length fill all of them; which
process does a task does not matter to it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from loadgen.errors import LoadgenError
from loadgen.foreground import deaf_to_ctrl_c

T = TypeVar("T")
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def each(
    task: Callable[[int], T], numbers: Sequence[int], *, what: str, workers: int | None = None
) -> Iterator[tuple[int, T]]:
    """Yields (number, task(number)) of every number, as they end.

    With several ``workers`` (default: one per CPU) ``task`` must be picklable; with one it runs in this
    process. Closing the iterator, or Ctrl-C in it, ends the processes. Raises what a task raises of
    LoadgenError, and LoadgenError when a process ended without a result; ``what`` names the tasks, such
    as ``--uncertainty: {} of {} draws``.
    """
    workers = min(len(numbers), workers or os.cpu_count() or 1)
    if workers <= 1:
        for number in numbers:
            yield number, task(number)
    else:
        yield from _spread(task, numbers, what, workers)


def _spread(
    task: Callable[[int], T], numbers: Sequence[int], what: str, workers: int
) -> Iterator[tuple[int, T]]:
    # Fresh processes: forking one with threads (a live view, BLAS) may deadlock the child.
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        with deaf_to_ctrl_c(), _one_thread_each():  # inherited: an interruption is this process's to handle
            for _ in range(workers):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there,), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                pipes.append(here)
        yield from _collected(pipes, numbers, pickle.dumps(task), what)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in the block do linear algebra in one thread: as many processes as cores is enough.

    With more, small dot products of several processes wait for each other: measured 18 times as long.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _collected(
    pipes: list[Connection], numbers: Sequence[int], task: bytes, what: str
) -> Iterator[tuple[int, Any]]:
    """Hands every process the task and a number whenever it has none; yields what comes back."""
    missing, waiting = set(numbers), iter(numbers)
    for pipe in pipes:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: what it is handed stays missing
            pipe.send_bytes(task)
            pipe.send(next(waiting))  # as many numbers as pipes, at least
    left = list(pipes)
    while left:
        for ready in wait(left):
            assert isinstance(ready, Connection)
            try:
                number, result = ready.recv()
            except (EOFError, ConnectionResetError):
                left.remove(ready)
                continue
            if isinstance(result, LoadgenError):
                raise result
            with suppress(BrokenPipeError, ConnectionResetError):
                ready.send(next(waiting, None))
            missing.remove(number)
            yield number, result
    if missing:
        raise LoadgenError(f"{what.format(len(missing), len(numbers))} have no result: their process ended")


def _work(pipe: Connection) -> None:
    """One process: does the numbers it is handed and sends back what came of each."""
    task = pickle.loads(pipe.recv_bytes())
    gc.collect()
    gc.freeze()  # the task lives as long as the process; no collection should walk it again
    with pipe:
        while (number := pipe.recv()) is not None:
            try:
                pipe.send((number, task(number)))
            except LoadgenError as exc:
                pipe.send((number, exc))
                return
