"""The verb ``loadgen lint``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DESCRIPTION = """Judges a run: was it whole, was the client in time, were the right boards read, was the
server steady, can the energy be that of the work. Or judges a published energy per request
(--claim) against what its hardware cannot do better than: bare idle, idle with a server's
context, the arithmetic and the memory traffic of the tokens, the power limit.
Each rule prints its figure, its bound and where that is from."""
_EPILOG = """keys of --claim
  required: gpu, energy_wh, and interval_s (or low_s and high_s) or model and prompt_tokens
  optional: dtype output_tokens gpus prefix_cache (on, off, unknown) cached_tokens max_in_flight
            speculation (on, off, unknown) spacing (constant, uniform, uniform_script)

examples
  loadgen lint runs/20261121T101500Z-fixed_50ms-1a2b3c4d
  loadgen lint --claim gpu=h100-sxm model=llama-3.1-8b dtype=bfloat16 interval_s=0.05 \\
      prompt_tokens=1200 output_tokens=52 energy_wh=1.1e-3      the thank-you study's, at 50 ms

exit status: 0 valid (possible), 1 invalid (impossible), 2 a run or a claim that cannot be read.
Rules and equations: docs/lint.md."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` judges and prints, and returns the exit status.

    ``go`` is given exactly one of ``run`` (a path) and ``claim`` (K=V words), the other None.
    """
    lint = verbs.add_parser(
        "lint",
        help="judge whether a run can be believed, or a published figure be possible",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    what = lint.add_mutually_exclusive_group()
    what.add_argument("run", metavar="RUN", type=Path, nargs="?", help="a run directory, finished or not")
    what.add_argument(
        "--claim",
        metavar="K=V",
        nargs="+",
        action="extend",
        help="what is claimed, e.g. gpu=h100-sxm energy_wh=1.1e-3; repeatable",
    )
    lint.add_argument("--strict", action="store_true", help="of a run: exit 1 for warnings too")
    lint.add_argument("--json", action="store_true", help="one JSON object on stdout")

    def checked(args: argparse.Namespace) -> int:
        if args.run is None and args.claim is None:
            lint.error("expected a run directory, or a published figure as --claim K=V ...")
        if args.strict and args.claim is not None:
            lint.error("--strict: expected a run directory; a claim has no warnings")
        return go(args)

    lint.set_defaults(go=checked, parser=lint)
