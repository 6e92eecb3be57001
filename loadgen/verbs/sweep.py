"""The verb ``loadgen sweep``: its flags. What it does belongs to `loadgen.sweep` and `analysis.sweeps`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.shipped import shipped
from loadgen.verbs.numbers import at_least

_DESCRIPTION = """Simulates a scenario at many points of its keys: arrival patterns, rates, gates, clocks,
models, boards, schedulers. Points of one seed have the same requests and the same gaps. Without --http
the engine is driven directly. Prints means over seeds with intervals, ratios to a reference, the
Pareto front; writes rows, table.csv, findings.json and figures into one directory, whose path is
the last line of stdout. A sweep that was ended goes on when it is started again."""
_EPILOG = """examples:
  loadgen sweep arrival_shaping                           fixed against random at equal mean gap
  loadgen sweep my_sweep.yaml --dry-run                   list its points
  loadgen sweep gate --set load.requests=300 --workers 1
  loadgen sweep rate --http --set load.requests=300       the whole path: client, server, power sampling
  loadgen sweep --resume sweeps/20261121T101500Z-rate-1a2b3c4d

shipped sweeps: {shipped}
exit status: 0 complete, 2 usage or a mistake in the file, 130 interrupted. The file: docs/sweeps.md."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` sweeps and prints, and returns the exit status.

    It finds in the namespace ``file`` (text or None), ``set`` (K=V words), ``output_dir``, ``resume`` (a path
    or None), ``http``, ``workers`` (or None), ``dry_run``, ``json`` and ``quiet``.
    """
    sweep = verbs.add_parser(
        "sweep",
        help="simulate a scenario at many points of its keys",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(shipped=", ".join(path.stem for path in shipped("sweep"))),
        formatter_class=formatter,
    )
    sweep.add_argument("file", metavar="FILE", nargs="?", help="a sweep's YAML file, or a shipped one's name")
    sweep.add_argument(
        "--set",
        metavar="K=V",
        action="append",
        default=[],
        help="any key of the base scenario, e.g. --set load.requests=300; repeatable",
    )
    sweep.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("sweeps"),
        help="parent of the sweep's directory (default %(default)s)",
    )
    sweep.add_argument("--resume", metavar="DIR", type=Path, help="go on in this directory")
    sweep.add_argument("--http", action="store_true", help="the whole path in virtual time: slower")
    sweep.add_argument("--workers", metavar="N", type=at_least(1), help="processes (default one per CPU)")
    sweep.add_argument("--dry-run", action="store_true", help="list the points and run nothing")
    sweep.add_argument("--json", action="store_true", help="the findings as one JSON object on stdout")
    sweep.add_argument("--quiet", action="store_true", help="no progress")

    def checked(args: argparse.Namespace) -> int:
        if args.file is None and args.resume is None:
            sweep.error("expected a sweep's FILE, or --resume DIR")
        return go(args)

    sweep.set_defaults(go=checked, parser=sweep)
