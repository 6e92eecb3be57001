"""The verb ``loadgen calibrate``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DESCRIPTION = """Fits the constants of the general model to runs on one board: which share of its arithmetic
and bandwidth kernels reach, what a step costs the host with and without CUDA graphs, and the law
of its power. Each has a 95 % interval; what the runs cannot tell is kept at the table's value and said.
Errors are given for what was left out of the fit. Replies must have been streamed."""
_EPILOG = """Vary the load: requests one at a time with prompts of mixed lengths tell the time of a prompt,
batches tell the bandwidth from the host's time, pauses the idle power. Two or three short runs do.

examples:
  loadgen calibrate runs/*-alone-* runs/*-batch-* --gpu l4 -o my-l4.json
  loadgen calibrate RUN --gpu rtx-4090 --model smollm2/config.json --dtype float16 -o profile.json
  loadgen validate OTHER_RUN --gpu my-l4.json           the same load on the calibrated emulator
  loadgen run scenarios/fixed_50ms.yaml --gpu my-l4.json

exit status: 0 calibrated, 2 runs that cannot be calibrated to. Equations and the profile's keys:
docs/calibration.md."""


def add_board(parser: argparse.ArgumentParser, gpu: str) -> None:
    """Flags that say what a run was of, where it does not tell."""
    parser.add_argument("--gpu", metavar="G", help=gpu)
    parser.add_argument("--model", metavar="M", help="the model's id or a config.json, if the run names none")
    parser.add_argument("--dtype", metavar="D", help="the number format, if the run names none")


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` fits, writes and prints, and returns the exit status."""
    calibrate = verbs.add_parser(
        "calibrate",
        help="fit a board's constants to runs, as a profile that --gpu takes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    calibrate.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories")
    calibrate.add_argument(
        "-o", "--output", metavar="F", type=Path, help="write the hardware profile to this file as JSON"
    )
    add_board(calibrate, "the board to start from, an id or a profile (what the runs name)")
    calibrate.add_argument("--json", action="store_true", help="the profile as one JSON object on stdout")
    calibrate.set_defaults(go=go, parser=calibrate)
