"""The verb ``loadgen theory``: what the study's models and our own predict. Each model has its own flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from loadgen.verbs import theory_errata, theory_llm, theory_step, theory_video

_DESCRIPTION = """Evaluates the formulas of the studies this project examines, exactly as they define them:
no run, no GPU. What this project itself takes for a forward pass, as `loadgen serve` does, is `step`."""
_EPILOG = """examples:
  loadgen theory llm --prompt-tokens 1200 --output-tokens 52
  loadgen theory llm --dtype bfloat16 --efficiency raw --scope full --operations --json
  loadgen theory step --model llama-3.1-70b --shards 4 --prefill 2048@4096 --decode 16x1000
  loadgen theory video --figure scaling.svg
  loadgen theory thresholds --json
  loadgen theory errata A26"""


def add_verb(
    verbs: Any, formatter: Any, video: Callable[[argparse.Namespace], int] = theory_video.show_video
) -> None:
    """Adds the verb to argparse's subparsers; ``video`` does what ``theory video`` does, figure included."""
    theory = verbs.add_parser(
        "theory",
        help="evaluate models of time and energy: the studies' and our own",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    models = theory.add_subparsers(dest="theory", metavar="MODEL", required=True)
    theory_llm.add_llm(models, formatter, theory_llm.show)
    theory_step.add_step(models, formatter, theory_step.show)
    theory_video.add_video(models, formatter, video)
    theory_video.add_thresholds(models, formatter, theory_video.show_thresholds)
    theory_errata.add_errata(models, formatter, theory_errata.show_errata)
