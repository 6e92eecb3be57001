"""The verb ``loadgen fit``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.verbs import compare

_DESCRIPTION = """Fits laws to one or several runs of the same model, board and number format: seconds and
joules of prefill and decode by prompt and reply length (the thank-you study's forms), power,
seconds of a step by its rows and context, and the seven-coefficient tariff that divides energy
among requests. Each coefficient has a 95 % interval; what the runs cannot tell is refused with the reason."""
_EPILOG = """The study's forms are laws of one request at a time: use a closed loop with one in flight,
  load: {pattern: closed_loop, requests: 500, max_in_flight: 1}
with prompts and replies of mixed lengths. A fit of other runs says that it describes their load only.

examples:
  loadgen fit runs/20261121T101500Z-alone-1a2b3c4d -o model.json
  loadgen fit runs/*-alone-* -o model.json --figure residuals.svg
  loadgen fit RUN --json | jq '.fitted[] | select(.name == "t_decode") | .terms'
  loadgen analyze OTHER_RUN --weights model.json       its tariff divides another run's energy

exit status: 0 fitted, 2 runs that cannot be fitted together, or nothing to fit. Keys of model.json and
equations: docs/fit.md."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` fits and prints, and returns the exit status."""
    fit = verbs.add_parser(
        "fit",
        help="fit time, energy and power of prefill and decode to runs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    fit.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories")
    fit.add_argument("-o", "--output", metavar="F", type=Path, help="write the model to this file as JSON")
    fit.add_argument("--json", action="store_true", help="the model as one JSON object on stdout")
    fit.add_argument(
        "--figure",
        metavar="F",
        type=compare.figure,
        help="draw residuals against predictions, a file a fit: F-t_prefill.svg of F.svg (.svg .png .pdf)",
    )
    fit.set_defaults(go=go, parser=fit)
