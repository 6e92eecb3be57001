"""The verb ``loadgen report``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.verbs import service
from loadgen.verbs.analyze import add_flags

_DESCRIPTION = """Writes a run as one HTML file that opens offline: the verdict and its rules first, then the
headline with its intervals, where the energy went, figures, method, configuration, hardware
and how to reproduce it. Of several runs: one page with each, and the comparison on top."""
_EPILOG = """examples:
  loadgen report runs/20261121T101500Z-fixed_50ms-1a2b3c4d               RUN/report/report.html
  loadgen report RUN -o page.html --open                                 and shows it
  loadgen report RUN --figures RUN/report/figures                        its figures as PNG and PDF too
  loadgen report fixed/ poisson/ -o both.html                            two runs; the first is the reference
  loadgen report RUN --window steady --requests-per-day 1e6 --grid FR    as for analyze

The last line of stdout is the file's path.
exit status: 0 valid, 1 a run is invalid (the page says so), 2 usage or an unreadable run."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` writes the page, and returns the exit status."""
    report = verbs.add_parser(
        "report",
        help="write a run, or several compared, as one HTML file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run directory")
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the page (default report/report.html of the run, of several the first)",
    )
    report.add_argument("--figures", metavar="DIR", type=Path, help="also write the figures as PNG and PDF")
    add_flags(report)
    service.add_flags(report)
    report.add_argument("--open", action="store_true", help="show the page in the browser")
    report.set_defaults(go=go, parser=report)
