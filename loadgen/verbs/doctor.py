"""The verb ``loadgen doctor``: its flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers."""
    doctor = verbs.add_parser(
        "doctor",
        help="what can be measured here, and what answers at an address",
        description="Reads every power source of this machine for 1.5 s and prints, for each domain, the\n"
        "method, or why it is unavailable and what to do; then the clock, the cores and the limits.",
        epilog="exit status: 0 when the energy of at least one domain is measured (an estimate is not) or,\n"
        "with --url and --sidecar, when they answer and are fit for a run; 1 when not; 2 for a mistake\n"
        "on the command line.",
        formatter_class=formatter,
    )
    doctor.add_argument("--url", metavar="U", help="also ask the server at this address what it is")
    doctor.add_argument("--api-key", metavar="K", help="bearer token for it (default: LOADGEN_API_KEY)")
    doctor.add_argument("--sidecar", metavar="U", help="also examine the power sidecar at this address")
    doctor.add_argument(
        "--sidecar-token-file",
        type=Path,
        metavar="F",
        help="file with its token (default: LOADGEN_SIDECAR_TOKEN)",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object on stdout (docs/doctor.md)")
    doctor.set_defaults(go=go, parser=doctor)
