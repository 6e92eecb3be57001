"""The verb ``loadgen sidecar``: its flags, and what they ask for."""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen import clock, foreground
from loadgen.errors import ConfigError

_DESCRIPTION = """Samples the power of this machine beside the server and hands the samples to `loadgen run`:
boards through NVML, CPUs through RAPL, memory by estimate. Start it on the machine with the
GPUs; what it can read, and why not the rest, it says first. `loadgen doctor` asks the same once.
A killed sidecar keeps every sample and goes on where it was. http://127.0.0.1:9400/ shows it."""
_EXAMPLES = """examples:
  loadgen sidecar                                     everything there is, for this machine only
  loadgen run SCENARIO --url http://localhost:8080 --sidecar http://localhost:9400
  ssh -L 9400:localhost:9400 gpu-host                 ... and the same from another machine
  openssl rand -hex 32 > token; chmod 600 token       without ssh: a token for both sides
  loadgen sidecar --listen 0.0.0.0:9400 --token-file token
  loadgen run SCENARIO --url http://gpu-host:8080 --sidecar http://gpu-host:9400 --sidecar-token-file token
  loadgen sidecar --gpu GPU-5a1c --pid 4711 --scrape http://localhost:8080

exit status: 0 ended by SIGTERM or Ctrl-C, its last samples written; 2 it cannot do what it was asked for;
130 ended at once by a second Ctrl-C. Everything else: docs/sidecar.md."""


def add_verb(verbs: Any, formatter: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    sidecar = verbs.add_parser(
        "sidecar",
        help="sample this machine's power and serve the samples",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    serving = sidecar.add_argument_group("who may ask")
    serving.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:9400",
        help="address, [::1]:9400 for IPv6, port 0 for a free one (default %(default)s)",
    )
    serving.add_argument(
        "--token-file",
        metavar="F",
        type=Path,
        help="demand the token in this file; needed to listen beyond loopback",
    )
    sampling = sidecar.add_argument_group("what is sampled")
    sampling.add_argument(
        "--interval",
        metavar="S",
        type=_within(0.001, 60),
        default=0.05,
        help="seconds between samples (default %(default)s; boards publish every 0.1)",
    )
    sampling.add_argument(
        "--gpu",
        metavar="G",
        action="append",
        help="a board by UUID, its beginning, or NVML index; repeatable (default: all)",
    )
    sampling.add_argument(
        "--cpu-tdp",
        metavar="W",
        type=_within(1, 100_000),
        help="where RAPL is missing, estimate the CPUs from their thermal design power, all sockets",
    )
    sampling.add_argument(
        "--powercap",
        metavar="DIR",
        type=Path,
        help="where the powercap tree is, if a container mounts it elsewhere",
    )
    server = sidecar.add_argument_group("the server beside it")
    server.add_argument(
        "--pid",
        metavar="P",
        type=_pid,
        help="the server's process, with its descendants; without it, whoever listens on the run's port",
    )
    server.add_argument(
        "--scrape", metavar="URL", help="also sample this server's own metrics (TGI, vLLM, SGLang, llama.cpp)"
    )
    server.add_argument(
        "--scrape-interval",
        metavar="S",
        type=_within(0.05, 60),
        default=0.5,
        help="seconds between them (default %(default)s)",
    )
    kept = sidecar.add_argument_group("what is kept")
    kept.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        default=Path("sidecar"),
        help="directory of the samples (default ./%(default)s)",
    )
    kept.add_argument(
        "--keep-h",
        metavar="H",
        type=_within(0.1, 1e6),
        default=168.0,
        help="hours that samples are kept (default %(default)g)",
    )
    sidecar.set_defaults(go=_sidecar, parser=sidecar)


def _sidecar(args: argparse.Namespace) -> int:
    foreground.end_while_starting()
    import psutil

    from loadgen.clients.http import parse_url
    from loadgen.power.rapl import POWERCAP
    from loadgen.sidecar.access import demand_token, parse_listen, read_token
    from loadgen.sidecar.directory import DataDirectory
    from loadgen.sidecar.sampler import SamplerConfig
    from loadgen.sidecar.service import Options, serve

    listen = parse_listen(args.listen)
    demand_token(listen, args.token_file)
    token = None
    if args.token_file is not None:
        token, readable = read_token(args.token_file)
        if readable is not None:
            print(f"loadgen: warning: {readable}", file=sys.stderr)
    if args.scrape is not None:
        parse_url(args.scrape, "--scrape")
    if args.powercap is not None and not args.powercap.is_dir():
        raise ConfigError(f"--powercap {args.powercap}: there is no such directory")
    if args.pid is not None and not psutil.pid_exists(args.pid):
        raise ConfigError(f"--pid {args.pid}: there is no such process")
    config = SamplerConfig(
        str(args.data_dir),
        args.interval,
        args.gpu,
        args.cpu_tdp,
        keep_s=3600 * args.keep_h,
        powercap=str(args.powercap or POWERCAP),
    )
    options = Options(listen, config, token, args.pid, args.scrape, args.scrape_interval)
    directory = DataDirectory(args.data_dir)
    with directory.owned() as lock, asyncio.Runner(loop_factory=clock.fast_loop) as runner:
        runner.run(serve(options, directory, lock))
    return 0


def _within(least: float, most: float) -> Callable[[str], float]:
    """The type of a flag that takes numbers of a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text!r}")
        return value

    return parse


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**22 + 1):
        raise argparse.ArgumentTypeError(f"expected the number of a process, got {text!r}")
    return int(text)
