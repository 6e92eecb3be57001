"""The command line: one parser, a subparser a verb; mistakes are one line that names the near flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import NoReturn

import loadgen
from loadgen.config import near
from loadgen.sidecar import verb as sidecar
from loadgen.verbs import (
    analyze,
    calibrate,
    capacity,
    compare,
    doctor,
    fit,
    lint,
    report,
    scenario,
    serve,
    summary,
    sweep,
    theory,
    validate,
)

USAGE = 2
"""Exit status of a mistake on the command line or in a file."""

Go = Callable[[argparse.Namespace], int]

_EXAMPLES = """examples:
  loadgen run scenarios/fixed_50ms.yaml                        the main job, on the embedded server
  loadgen run scenarios/poisson_20rps.yaml --url http://gpu-host:8080    a real TGI, vLLM or llama.cpp
  loadgen run scenarios/fixed_50ms.yaml --request-rate 5 --request-count 500 --fail-if 'p99_ttft>0.5'
  loadgen check scenarios/azure_conversation.yaml              validate and print the plan
  loadgen summary runs/20261121T101500Z-fixed_50ms-1a2b3c4d    print a run again, from its files alone
  loadgen report RUN                                           the same and more as one page to look at
  loadgen analyze RUN --window steady                          where its energy went, request by request
  loadgen compare RUN OTHER                                    did one beat the other, at the same load?
  loadgen lint --claim gpu=h100-sxm interval_s=0.05 energy_wh=1.1e-3     is a published figure possible?
  loadgen sweep arrival_shaping                                fixed against random at exactly equal mean gap
  loadgen capacity chat_day --gpu h100-sxm --gpu l40s          how many of which boards, at what cost?
  loadgen calibrate RUN RUN -o my-h100.json                    fit the simulated board to measured runs
  loadgen validate RUN --gpu my-h100.json                      the same load on it: residuals
  loadgen theory llm --prompt-tokens 1200 --output-tokens 52   what the studies' models predict
  loadgen theory errata                                        what the studies state, and what follows
  loadgen serve --port 8080                                    the embedded TGI-protocol server
  loadgen sidecar                                              on the GPU host: sample and serve its power
  loadgen doctor --url http://gpu-host:8080                    what can be measured, what answers
"""


class Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are one line that names the near flag, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"loadgen: {message} (see {self.prog} --help)\n")

    def near_flag(self, word: str) -> str:
        """``; did you mean '--x'?`` for the closest flag, or nothing."""
        return near(word.partition("=")[0], self._option_string_actions)


def build_parser(go: Mapping[str, Go]) -> Parser:
    """The whole command line; ``go``: what each verb does, by its name, and ``theory video``."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="loadgen",
        description="Traffic-shaping load generator and energy study for LLM serving:\n"
        "what a request costs in energy and time, and how the way requests arrive changes it.",
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"loadgen {loadgen.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    scenario.add_run(verbs, formatter, go["run"])
    scenario.add_check(verbs, formatter, go["check"])
    summary.add_verb(verbs, formatter, go["summary"])
    analyze.add_verb(verbs, formatter, go["analyze"])
    report.add_verb(verbs, formatter, go["report"])
    compare.add_verb(verbs, formatter, go["compare"])
    fit.add_verb(verbs, formatter, go["fit"])
    calibrate.add_verb(verbs, formatter, go["calibrate"])
    validate.add_verb(verbs, formatter, go["validate"])
    lint.add_verb(verbs, formatter, go["lint"])
    capacity.add_verb(verbs, formatter, go["capacity"])
    sweep.add_verb(verbs, formatter, go["sweep"])
    theory.add_verb(verbs, formatter, go["theory video"])
    serve.add_verb(verbs, formatter, go["serve"])
    sidecar.add_verb(verbs, formatter)
    doctor.add_verb(verbs, formatter, go["doctor"])
    return parser


def parse_arguments(go: Mapping[str, Go], argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with ``go``, what their verb does, given by verb. Exits with 2 for a mistake."""
    args, rest = build_parser(go).parse_known_args(argv)
    if rest:
        verb: Parser = args.parser
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        verb.error(f"unknown argument {wrong}{verb.near_flag(wrong)}")
    return args
