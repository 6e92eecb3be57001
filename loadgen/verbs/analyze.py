"""The verb ``loadgen analyze``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.verbs import service

METHODS = ("work", "linear", "time", "regression", "mean", "marginal", "tokens")
FORMATS = ("csv", "parquet")
_DESCRIPTION = """Says where the energy of a run went: idle, prefill and decode of each request, what failed
requests and warm-ups took, and what was spent while nothing ran; with its spread, its
uncertainty and the verdict. Writes RUN/report/findings.json, which may be deleted and made again."""
_EPILOG = """methods (how far each is from the truth: docs/method.md):
  work        by what each request made the server do, step by step (default)
  linear      c_p prefill + decode (c_w / batch + c_kv context), idle in equal parts
  regression  as linear, its coefficients from this run's energies alone: unknown board or model
  time        equal parts to whoever is in a step
  mean, marginal, tokens   one figure for all; idle taken off; by tokens: for comparison

examples:
  loadgen analyze runs/20261121T101500Z-poisson_20rps-1a2b3c4d
  loadgen analyze RUN --window steady            without warming up and draining, if it settled
  loadgen analyze RUN --window 60:300            run time in seconds, 0 is the first due time
  loadgen analyze RUN --slice 30                 joules per success of every half minute
  loadgen analyze RUN --weights model.json       coefficients from `loadgen fit`
  loadgen analyze RUN --export tables --format csv parquet
  loadgen analyze RUN --requests-per-day 1e6 --pue 1.2 --grid FR --price-per-kwh 0.20
  loadgen analyze RUN --json | jq .attribution.spent

exit status: 0 valid, 1 the run is invalid (it is analysed all the same), 2 usage or an unreadable run."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` analyses and prints, and returns the exit status."""
    analyze = verbs.add_parser(
        "analyze",
        help="say where a run's energy went, request by request",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    analyze.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    add_flags(analyze)
    analyze.add_argument(
        "--export", metavar="DIR", type=Path, help="also write the run's tables, with each request's joules"
    )
    analyze.add_argument(
        "--format",
        metavar="F",
        nargs="+",
        choices=FORMATS,
        help="of the tables: csv, parquet or both (default)",
    )
    analyze.add_argument("--json", action="store_true", help="the findings as one JSON object on stdout")
    service.add_flags(analyze)
    analyze.set_defaults(go=go, parser=analyze)


def add_flags(verb: argparse.ArgumentParser) -> None:
    """The flags that say what to find, for every verb that studies a run."""
    verb.add_argument(
        "--attribution",
        metavar="METHOD",
        choices=METHODS,
        default="work",
        help="method (default %(default)s)",
    )
    verb.add_argument(
        "--window",
        metavar="W",
        default="whole",
        help="whole, steady (if it settled, else the whole) or START:END in seconds (default %(default)s)",
    )
    verb.add_argument(
        "--slice",
        metavar="SECONDS",
        type=float,
        help="rows of so many seconds instead of the scenario's stages",
    )
    verb.add_argument(
        "--weights",
        metavar="F",
        type=Path,
        help="model.json of `loadgen fit`, instead of physics' coefficients",
    )
