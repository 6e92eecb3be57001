"""The verbs and their wiring, nothing else. stdout is data, stderr is talk.

Exit status: 0 valid, 1 run invalid or a --fail-if met, 2 usage or configuration,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import orjson
from rich.console import Console
from rich.table import Table

import loadgen
from loadgen import clock, overrides
from loadgen.clients.redaction import redact_url
from loadgen.config import Tree, near, read_yaml
from loadgen.errors import LoadgenError
from loadgen.scenario import Scenario
from loadgen.scenario_file import find_scenario, shipped_scenarios, validate

OK, INVALID, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXAMPLES = """examples:
  loadgen run scenarios/fixed_50ms.yaml                        the main job, on the embedded server
  loadgen run scenarios/poisson_20rps.yaml --url http://gpu-host:8080    a real TGI, vLLM or llama.cpp
  loadgen run scenarios/fixed_50ms.yaml --request-rate 5 --request-count 500 --fail-if 'p99_ttft>0.5'
  loadgen check scenarios/azure_conversation.yaml              validate and print the plan
  loadgen summary runs/20261121T101500Z-fixed_50ms-1a2b3c4d    print a run again, from its files alone
  loadgen serve --port 8080                                    the embedded TGI-protocol server
"""


class _Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are one line that names the near flag, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"loadgen: {message} (see {self.prog} --help)\n")

    def near_flag(self, word: str) -> str:
        """``; did you mean '--x'?`` for the closest flag, or nothing."""
        return near(word.partition("=")[0], self._option_string_actions)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        verb: _Parser = args.parser
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        verb.error(f"unknown argument {wrong}{verb.near_flag(wrong)}")
    return args


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes whole numbers of a range."""
    expected = f"a whole number from {least} to {most}" if most is not None else f"a whole number >= {least}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def _parser() -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="loadgen",
        description="Traffic-shaping load generator and energy study for LLM serving:\n"
        "what a request costs in energy and time, and how the way requests arrive changes it.",
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"loadgen {loadgen.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    shipped = "shipped scenarios: " + ", ".join(p.stem for p in shipped_scenarios())

    def on_a_scenario(verb: str, summary: str, description: str) -> argparse.ArgumentParser:
        words = verbs.add_parser(
            verb, help=summary, description=description, epilog=shipped, formatter_class=formatter
        )
        words.add_argument("scenario", metavar="SCENARIO", help="a YAML file, or the name of a shipped one")
        overrides.add_flags(words)
        return words

    run = on_a_scenario(
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
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.set_defaults(go=_run, parser=run)

    check = on_a_scenario(
        "check",
        "validate a scenario and print its resolved plan",
        "Validates a scenario and prints what it would send: count, duration, realised rate,\n"
        "gap CV, index of dispersion, lag-1 autocorrelation, token lengths. Sends nothing.",
    )
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.set_defaults(go=_check, parser=check)

    summary = verbs.add_parser(
        "summary",
        help="print a run's summary from its files alone",
        description="Reads a run directory, finished or not, and prints its summary and verdict.",
        formatter_class=formatter,
    )
    summary.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    summary.add_argument("--json", action="store_true", help="one JSON object on stdout")
    summary.add_argument("--fail-if", metavar="EXPR", action="append", default=[], help="as for run")
    summary.set_defaults(go=_summary, parser=summary)

    serve = verbs.add_parser(
        "serve",
        help="serve the TGI protocol from the simulated GPU",
        description="Serves TGI's and OpenAI's routes from a continuous-batching engine with the time and\n"
        "power of a simulated GPU. Text is made up; timing, batching, limits and errors are TGI's.",
        formatter_class=formatter,
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    serve.add_argument(
        "--port", type=_at_least(0, 65535), default=8080, help="port, 0 for a free one (default %(default)s)"
    )
    serve.add_argument(
        "--model", default=None, metavar="M", help="model to simulate (default llama-3.1-8b, the only one)"
    )
    serve.add_argument("--gpu", default=None, metavar="G", help="h100-sxm or a100-sxm (default h100-sxm)")
    serve.add_argument("--dtype", default=None, metavar="D", help="bfloat16 or float32 (default bfloat16)")
    serve.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="seed of reply lengths (default %(default)s)",
    )
    serve.add_argument(
        "--max-concurrent-requests",
        type=_at_least(1),
        default=128,
        metavar="N",
        help="refuse with 429 beyond (default 128)",
    )
    serve.add_argument("--api-key", metavar="K", help="demand this bearer token on POST routes")
    serve.set_defaults(go=_serve, parser=serve)
    return parser


def _resolve(args: argparse.Namespace) -> tuple[Scenario, str, Tree]:
    path = find_scenario(args.scenario)
    tree = read_yaml(path)
    overrides.apply(tree, args)
    return validate(tree, path.parent), path.read_text(encoding="utf-8"), tree


def _run(args: argparse.Namespace) -> int:
    from analysis.fail_if import parse
    from loadgen.experiment import Order, execute
    from loadgen.plan import build
    from loadgen.progress import RunView

    conditions = [parse(text) for text in args.fail_if]
    scenario, text, _ = _resolve(args)
    if scenario.server.url and args.clock == "virtual":
        raise LoadgenError(
            "--clock virtual: only the embedded server can be run in virtual time, and there is a url"
        )
    talk = Console(stderr=True)
    with talk.status("planning") if talk.is_terminal and not args.quiet else nullcontext():
        planned = build(scenario)
    for note in planned.notes:
        talk.print(f"note: {note}", highlight=False)
    gc.collect()
    gc.freeze()  # the plan lives as long as the run; no collection should walk it again
    order = Order(scenario, text, planned, args.output_dir, args.api_key)
    virtual = not scenario.server.url and args.clock != "real"
    view = RunView(talk, len(planned.measured.arrivals), quiet=args.quiet)
    interrupted = False
    with view, asyncio.Runner(loop_factory=clock.VirtualLoop if virtual else clock.fast_loop) as runner:
        try:
            runner.run(execute(order, view))
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted = True
    if view.path is None:
        return INTERRUPTED
    status = _report(view.path, conditions)
    print(view.path)
    return INTERRUPTED if interrupted else status


def _report(path: Path, conditions: list[Any]) -> int:
    from analysis.load import load_run
    from analysis.show import render
    from analysis.summary import summarize

    talk = Console(stderr=True)
    with talk.status("summarising") if talk.is_terminal else nullcontext():
        summary = summarize(load_run(path))
    render(summary, Console())
    return _verdict(summary, conditions)


def _verdict(summary: dict[str, Any], conditions: list[Any]) -> int:
    """The exit status of a summary; says on stderr which condition was met."""
    from analysis.fail_if import met as is_met

    met = [reason for condition in conditions if (reason := is_met(condition, summary))]
    for reason in met:
        print(f"loadgen: --fail-if met: {reason}", file=sys.stderr)
    return INVALID if met or not summary["valid"] else OK


def _check(args: argparse.Namespace) -> int:
    from loadgen.plan import build, describe_plan, plan_lines

    scenario, _, _ = _resolve(args)
    facts = describe_plan(scenario, build(scenario))
    facts["target"] = redact_url(facts["target"])
    if args.json:
        print(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
    else:
        table = Table.grid(padding=(0, 2))
        for label, value in plan_lines(facts):
            table.add_row(f"[bold]{label}[/]", value)
        Console().print(table)
    return OK


def _summary(args: argparse.Namespace) -> int:
    from analysis.fail_if import parse
    from analysis.load import load_run
    from analysis.summary import summarize

    conditions = [parse(text) for text in args.fail_if]
    if args.run.is_file():
        raise LoadgenError(f"{args.run}: expected a run directory, got a file")
    if not args.json:
        return _report(args.run, conditions)
    summary = summarize(load_run(args.run))
    print(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())
    return _verdict(summary, conditions)


def _serve(args: argparse.Namespace) -> int:
    from loadgen.server.host import serving
    from loadgen.server.service import Service
    from loadgen.target import DEFAULT_DTYPE, DEFAULT_GPU, DEFAULT_MODEL

    async def serve() -> None:
        service = Service(
            args.model or DEFAULT_MODEL,
            args.gpu or DEFAULT_GPU,
            args.dtype or DEFAULT_DTYPE,
            seed=args.seed,
            max_concurrent_requests=args.max_concurrent_requests,
        )
        address = (args.host, args.port)
        async with serving(service, seed=args.seed, address=address, api_key=args.api_key) as host:
            limits = service.limits
            print(
                f"loadgen: serving {limits.model_id} on simulated {args.gpu or DEFAULT_GPU} at {host.url} "
                f"(TGI and OpenAI routes; Ctrl-C ends it)",
                file=sys.stderr,
                flush=True,
            )
            await asyncio.Event().wait()

    try:
        with asyncio.Runner(loop_factory=clock.fast_loop) as runner:
            runner.run(serve())
    except KeyboardInterrupt:
        return OK
    return OK


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    args = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="loadgen: %(name)s: %(message)s", stream=sys.stderr)
    try:
        return int(args.go(args))
    except LoadgenError as exc:
        for line in str(exc).splitlines():
            print(f"loadgen: {line}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
