"""The verb ``loadgen lint``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

_DESCRIPTION = """Judges a published energy per request against what its hardware cannot do better than:
bare idle, idle with a server's context, the arithmetic and the memory traffic of the
tokens, the power limit. Each rule prints its figure, bound, equation and source."""
_EPILOG = """required: gpu, energy_wh, and interval_s (or low_s and high_s) or model and prompt_tokens
optional: dtype output_tokens gpus prefix_cache (on, off, unknown) cached_tokens max_in_flight
          speculation (on, off, unknown) spacing (constant, uniform, uniform_script)

example, the thank-you study's 1.1e-3 Wh at 50 ms:
  loadgen lint --claim gpu=h100-sxm model=llama-3.1-8b dtype=bfloat16 interval_s=0.05 \\
      prompt_tokens=1200 output_tokens=52 energy_wh=1.1e-3

exit status: 0 possible, 1 impossible, 2 a claim that cannot be read. Rules and equations: docs/method.md."""


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` judges and prints, and returns the exit status."""
    lint = verbs.add_parser(
        "lint",
        help="judge whether a published energy figure is possible",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    lint.add_argument(
        "--claim",
        metavar="K=V",
        nargs="+",
        action="extend",
        required=True,
        help="what is claimed, e.g. gpu=h100-sxm energy_wh=1.1e-3; repeatable",
    )
    lint.add_argument("--json", action="store_true", help="one JSON object on stdout")
    lint.set_defaults(go=go, parser=lint)
