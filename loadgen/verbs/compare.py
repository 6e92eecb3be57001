"""The verb ``loadgen compare``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DESCRIPTION = """Sets runs against the first of them: difference and ratio of each headline with
interval, whether both bore the same load, what differs in hardware and configuration. Requests that
two runs share are paired. Runs of one scenario that differ in their seed only are taken as
repetitions of each other; --group says so by hand."""
_EPILOG = """examples:
  loadgen compare runs/A runs/B                            B against A
  loadgen compare runs/A runs/B --json                     the same for a machine
  loadgen compare runs/A runs/B --figure f.svg --metric p99_ttft
  loadgen compare --group fixed=runs/A1,runs/A2 --group poisson=runs/B1,runs/B2

exit status: 0 every run is valid, 1 one is not, 2 usage. How it is computed: docs/compare.md."""
_ENDINGS = (".svg", ".png", ".pdf")


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` compares and prints, and returns the exit status.

    It finds in the namespace ``runs`` (paths), ``groups`` (pairs of a name and its paths), ``tolerance``,
    ``figure`` (a path or None), ``metric`` (a name or None) and ``json``.
    """
    compare = verbs.add_parser(
        "compare",
        help="set runs against a reference run",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    compare.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="run directories, reference first")
    compare.add_argument(
        "--group",
        dest="groups",
        metavar="NAME=RUN,RUN,...",
        action="append",
        default=[],
        type=_group,
        help="runs that repeat each other; repeatable, reference first; instead of RUN",
    )
    compare.add_argument(
        "--tolerance",
        metavar="T",
        type=_tolerance,
        default=0.05,
        help="loads count as equal within this share (default %(default)s)",
    )
    compare.add_argument(
        "--figure", metavar="F", type=figure, help="also draw the ratios of --metric (.svg .png .pdf)"
    )
    compare.add_argument(
        "--metric",
        metavar="NAME",
        help="headline of the figure, named as for --fail-if (default energy_per_request_j)",
    )
    compare.add_argument("--json", action="store_true", help="one JSON object on stdout")
    compare.set_defaults(go=go, parser=compare)


def _group(text: str) -> tuple[str, tuple[Path, ...]]:
    name, equals, rest = text.partition("=")
    paths = [word.strip() for word in rest.split(",")]
    if not equals or not name.strip() or not all(paths):
        raise argparse.ArgumentTypeError(
            f"expected NAME=RUN,RUN,... such as fixed=runs/A,runs/B, got {text!r}"
        )
    return name.strip(), tuple(Path(path) for path in paths)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.05, got {text!r}")
    return value


def figure(text: str) -> Path:
    """A file that figures are written to, by its ending. Raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix.lower() not in _ENDINGS:
        raise argparse.ArgumentTypeError(f"expected a file that ends in {', '.join(_ENDINGS)}, got {text!r}")
    return path
