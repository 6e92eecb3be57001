"""The verb ``loadgen theory``: what the study's models predict. Each model has its own flags."""

from __future__ import annotations

from typing import Any

from loadgen.verbs import theory_llm, theory_video

_DESCRIPTION = """Evaluates the formulas of the studies this project examines, exactly as they define them:
no run, no GPU. What this project itself takes for a step is `loadgen serve`'s model, not these."""
_EPILOG = """examples:
  loadgen theory llm --prompt-tokens 1200 --output-tokens 52
  loadgen theory llm --dtype bfloat16 --efficiency raw --scope full --operations --json
  loadgen theory video
  loadgen theory thresholds --json"""


def add_verb(verbs: Any, formatter: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    theory = verbs.add_parser(
        "theory",
        help="evaluate the studies' models of time and energy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    models = theory.add_subparsers(dest="theory", metavar="MODEL", required=True)
    theory_llm.add_llm(models, formatter, theory_llm.show)
    theory_video.add_video(models, formatter, theory_video.show_video)
    theory_video.add_thresholds(models, formatter, theory_video.show_thresholds)
