"""The verb ``loadgen summary``: its flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers."""
    summary = verbs.add_parser(
        "summary",
        help="print a run's summary from its files alone",
        description="Reads a run directory, finished or not, and prints its summary and verdict.",
        formatter_class=formatter,
    )
    summary.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    summary.add_argument("--json", action="store_true", help="one JSON object on stdout")
    summary.add_argument("--fail-if", metavar="EXPR", action="append", default=[], help="as for run")
    summary.set_defaults(go=go, parser=summary)
