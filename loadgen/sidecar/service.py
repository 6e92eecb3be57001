"""The sidecar in the foreground: the sampler process, the HTTP interface over its files, and their end."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aiohttp import web

from loadgen import clock, foreground
from loadgen.errors import ConfigError
from loadgen.metrics.scrape import metrics_url, scrape
from loadgen.sidecar.access import Address
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.routes import Routes
from loadgen.sidecar.sampler import CHORES_S, SamplerConfig, command
from loadgen.sidecar.table import TableWriter
from loadgen.sidecar.watch import SamplerProcess
from loadgen.types import ServerSample

SCRAPE_AGAIN_S = 10.0
"""How soon a server that had no metrics is asked again."""
_SHUTDOWN_S = 1.0
_SWITCH_S = 0.0005
"""Python lets a thread run for 5 ms before another may: a thread that reads many rows would make
/v1/clock as much later."""
_METRICS = tuple(f.name for f in fields(ServerSample) if f.name != "t_s")


@dataclass(frozen=True, slots=True)
class Options:
    """What ``loadgen sidecar`` was asked for. ``pid``: the server's process, if named by the user."""

    listen: Address
    sampler: SamplerConfig
    token: str | None = None
    pid: int | None = None
    scrape: str | None = None
    scrape_interval_s: float = 0.5


async def serve(options: Options, directory: DataDirectory, lock: int) -> None:
    """Samples and answers until SIGTERM or Ctrl-C, over a directory that is owned (``lock``).

    What it measures, and where it answers, is told on stderr once it is known.
    Raises ConfigError for an address that cannot be had, a board that is not there, and
    a sampler that cannot start.
    """
    foreground.silence_bad_http()
    sys.setswitchinterval(_SWITCH_S)
    ending = foreground.asked_to_end()
    config = options.sampler
    sampling = SamplerProcess(directory, command(config), config.interval_s, lock, _warn)
    intervals_s = {"power": config.interval_s, "state": CHORES_S, "metrics": options.scrape_interval_s}
    scraping = None if options.scrape is None else _page_of(options.scrape)
    routes = Routes(directory, sampling, pid=options.pid, intervals_s=intervals_s, scraped=scraping)
    runner = web.AppRunner(
        routes.app(options.token), handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    try:
        url = await _listen(runner, options.listen)
        async with asyncio.TaskGroup() as group:
            group.create_task(sampling.run(ending))
            if scraping is not None:
                group.create_task(_scrape(scraping, options, ending))
            telling = group.create_task(_introduce(options, directory, sampling, url))
            await ending.wait()
            telling.cancel()
    except ExceptionGroup as several:
        refused = next((exc for exc in several.exceptions if isinstance(exc, ConfigError)), None)
        if refused is None:
            raise
        raise refused from None
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, address: Address) -> str:
    """The URL, with the real port. Raises ConfigError."""
    try:
        await web.TCPSite(runner, address.host, address.port).start()
    except OSError as exc:
        taken = exc.errno == errno.EADDRINUSE
        hint = "; is another sidecar running? --listen takes another port" if taken else ""
        # asyncio's own text repeats the address.
        why = os.strerror(exc.errno) if exc.errno else exc.strerror
        raise ConfigError(
            f"--listen {address.host}:{address.port}: cannot listen there: {why}{hint}"
        ) from exc
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _introduce(options: Options, directory: DataDirectory, sampling: SamplerProcess, url: str) -> None:
    """Tells what is measured once the sampler knows. Raises ConfigError for a board that is not there."""
    await sampling.ready.wait()
    said = directory.sampler()
    if options.sampler.gpus is not None and (reason := said["reasons"].get("gpu")) is not None:
        raise ConfigError(f"--gpu: {reason}")
    lines = [
        *_measured(said),
        *(f"  note: {warning.removeprefix('power: ')}" for warning in said["warnings"]),
    ]
    _tell(
        "\n".join(
            [
                f"sidecar at {url} (Ctrl-C ends it): a sample every {1000 * sampling.interval_s:g} ms "
                f"into {directory.folder}",
                *lines,
            ]
        )
    )


def _measured(said: Mapping[str, Any]) -> list[str]:
    """A line for each domain with method and period, and for each part that is not read, why."""
    lines = []
    for domain in said["domains"]:
        update_s, averaging_s = domain["update_s"], domain["averaging_s"]
        period = "" if update_s is None else f" every {1000 * update_s:g} ms"
        window = "" if averaging_s is None else f", mean of {1000 * averaging_s:g} ms"
        note = domain["note"].partition(";")[0]  # the rest, alike for each domain of a board, is in /v1/info
        lines.append(f"  {domain['name']:<14} {domain['method']}{period}{window}; {note}")
    boards = [f"  {row['domain']:<14} {row['name']} {row['uuid'] or ''}".rstrip() for row in said["boards"]]
    return (
        boards
        + lines
        + [
            f"  {part:<14} not read: {reason}"
            for part, reason in said["reasons"].items()
            if reason is not None
        ]
    )


def _page_of(url: str) -> str:
    """The address of a server's metrics, given that or the server's own."""
    return url if url.partition("?")[0].endswith("/metrics") else metrics_url(url)


async def _scrape(url: str, options: Options, ending: asyncio.Event) -> None:
    """Writes the server's own metrics into the table ``metrics``, also when the server starts later."""
    config = options.sampler
    table = TableWriter.open(Path(config.data_dir), "metrics", _METRICS, keep_s=config.keep_s)
    last_s = -math.inf

    def write(sample: ServerSample) -> None:
        nonlocal last_s
        # The middle of an exchange; a row's time must not run backwards.
        last_s = max(last_s, sample.t_s)
        told = {name: getattr(sample, name) for name in _METRICS}
        table.append(last_s, {name: (sample.t_s, value) for name, value in told.items() if value is not None})

    told: str | None = None
    try:
        while not ending.is_set():
            done = await scrape(url, options.scrape_interval_s, write, ending)
            if done.reason is not None and done.reason != told:
                told = done.reason
                _warn(f"metrics: {told}")
            await clock.wait(ending, SCRAPE_AGAIN_S)
    finally:
        table.close()


def _warn(text: str) -> None:
    _tell(f"warning: {text}")


def _tell(text: str) -> None:
    print(f"loadgen: {text}", file=sys.stderr, flush=True)
