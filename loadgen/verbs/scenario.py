"""The verbs ``loadgen run`` and ``loadgen check``: their flags, those of a scenario among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen import overrides
from loadgen.shipped import shipped
from loadgen.verbs.numbers import at_least

Go = Callable[[argparse.Namespace], int]


def add_run(verbs: Any, formatter: Any, go: Go) -> None:
    """Adds ``run`` to argparse's subparsers."""
    run = _on_a_scenario(
        verbs,
        formatter,
        "run",
        "run a scenario and print what it cost",
        "Runs a scenario: warm-up, idle baseline, load, drain, baseline; prints the summary.\n"
        "The last line of stdout is the run directory. Ctrl-C keeps the data.",
    )
    run.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("runs"),
        help="parent of the run directory (default %(default)s)",
    )
    run.add_argument(
        "--clock",
        choices=("virtual", "real"),
        help="embedded server only: virtual (default) jumps over waiting",
    )
    run.add_argument(
        "--fail-if",
        metavar="EXPR",
        action="append",
        default=[],
        help="exit 1 when true, e.g. 'p99_ttft>0.5' (seconds); repeatable; names in docs/method.md",
    )
    run.add_argument(
        "--uncertainty",
        metavar="N",
        type=at_least(2),
        help="embedded server only: repeat the run over N draws of the simulated hardware's uncertain\n"
        "constants and print the range of each figure",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.set_defaults(go=go, parser=run)


def add_check(verbs: Any, formatter: Any, go: Go) -> None:
    """Adds ``check`` to argparse's subparsers."""
    check = _on_a_scenario(
        verbs,
        formatter,
        "check",
        "validate a scenario and print its resolved plan",
        "Validates a scenario and prints what it would send: count, duration, realised rate,\n"
        "gap CV, index of dispersion, lag-1 autocorrelation, token lengths. Sends nothing.",
    )
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.set_defaults(go=go, parser=check)


def _on_a_scenario(
    verbs: Any, formatter: Any, verb: str, summary: str, description: str
) -> argparse.ArgumentParser:
    listed = "shipped scenarios: " + ", ".join(p.stem for p in shipped("scenario"))
    words: argparse.ArgumentParser = verbs.add_parser(
        verb, help=summary, description=description, epilog=listed, formatter_class=formatter
    )
    words.add_argument("scenario", metavar="SCENARIO", help="a YAML file, or the name of a shipped one")
    overrides.add_flags(words)
    return words
