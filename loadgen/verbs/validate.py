"""The verb ``loadgen validate``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.verbs import calibrate

_DESCRIPTION = """Serves a run's load once more on the emulator: the same requests at the same due times with
the lengths that were counted, on the board given. Prints TTFT, TPOT, end-to-end latency, throughput
and GPU energy of both with the residuals, and the residuals of the same requests."""
_EPILOG = """examples:
  loadgen calibrate runs/*-alone-* runs/*-batch-* -o my-l4.json
  loadgen validate runs/20261121T101500Z-poisson-1a2b3c4d --gpu my-l4.json
  loadgen validate RUN --gpu cpu.json --model smollm2/config.json --dtype float16 \\
      --set launcher.max_num_seqs=8              a real server's slots, which it does not tell

exit status: 0 compared, 2 a run that cannot be served again. docs/calibration.md."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` compares and prints, and returns the exit status."""
    validate = verbs.add_parser(
        "validate",
        help="a run against the emulator at the same load: residuals",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    validate.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    calibrate.add_board(validate, "the board, an id or a hardware profile (what the run names)")
    validate.add_argument(
        "--set",
        metavar="K=V",
        action="append",
        default=[],
        help="a limit of the server, e.g. launcher.max_num_seqs=8; repeatable",
    )
    validate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    validate.set_defaults(go=go, parser=validate)
