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
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from rich.console import Console
from rich.table import Table

import loadgen
from loadgen import clock, foreground, launch_flags, overrides
from loadgen.clients.redaction import redact_url
from loadgen.config import Tree, near, read_yaml
from loadgen.errors import LoadgenError
from loadgen.scenario import Scenario
from loadgen.scenario_file import find_scenario, shipped_scenarios, validate
from loadgen.sidecar.verb import add_verb as add_sidecar

if TYPE_CHECKING:
    from loadgen.experiment import Order

OK, INVALID, USAGE, INTERRUPTED = 0, 1, 2, foreground.INTERRUPTED

_EXAMPLES = """examples:
  loadgen run scenarios/fixed_50ms.yaml                        the main job, on the embedded server
  loadgen run scenarios/poisson_20rps.yaml --url http://gpu-host:8080    a real TGI, vLLM or llama.cpp
  loadgen run scenarios/fixed_50ms.yaml --request-rate 5 --request-count 500 --fail-if 'p99_ttft>0.5'
  loadgen check scenarios/azure_conversation.yaml              validate and print the plan
  loadgen summary runs/20261121T101500Z-fixed_50ms-1a2b3c4d    print a run again, from its files alone
  loadgen serve --port 8080                                    the embedded TGI-protocol server
  loadgen sidecar                                              on the GPU host: sample and serve its power
  loadgen doctor --url http://gpu-host:8080                    what can be measured, what answers
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
    run.add_argument(
        "--uncertainty",
        metavar="N",
        type=_at_least(2),
        help="embedded server only: repeat the run over N draws of the simulated hardware's uncertain\n"
        "constants and print the range of each figure",
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
    serve.add_argument(
        "--host", "--hostname", default="127.0.0.1", help="address to bind (default %(default)s)"
    )
    serve.add_argument(
        "--port", type=_at_least(0, 65535), default=8080, help="port, 0 for a free one (default %(default)s)"
    )
    serve.add_argument("--api-key", metavar="K", help="demand this bearer token on routes that generate")
    launch_flags.add_flags(serve)
    serve.set_defaults(go=_serve, parser=serve)

    add_sidecar(verbs, formatter)

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
    doctor.set_defaults(go=_doctor, parser=doctor)
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
    from loadgen.uncertainty import refuse

    conditions = [parse(text) for text in args.fail_if]
    scenario, text, _ = _resolve(args)
    if scenario.server.url and args.clock == "virtual":
        raise LoadgenError(
            "--clock virtual: only the embedded server can be run in virtual time, and there is a url"
        )
    if args.uncertainty is not None:
        refuse(scenario, args.clock)
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
    try:
        if args.uncertainty is not None and not interrupted:
            interrupted = not _repeat(order, view.path, args.uncertainty, quiet=args.quiet)
    finally:
        print(view.path)  # whatever becomes of the draws, the run is kept
    return INTERRUPTED if interrupted else status


def _repeat(order: Order, path: Path, count: int, *, quiet: bool) -> bool:
    """Repeats the run at ``path`` over draws of the constants; whether all of them ended."""
    from analysis import envelope
    from loadgen.progress import CountView
    from loadgen.uncertainty import repeat

    talk = Console(stderr=True)
    draws: dict[int, dict[str, Any]] = {}
    with CountView(talk, "draws of the constants", count, quiet=quiet) as view:
        try:
            for draw, figures in repeat(order, count, envelope.figures_of):
                draws[draw] = figures
                view.advance()
        except (KeyboardInterrupt, asyncio.CancelledError):
            talk.print(f"interrupted after {len(draws)} of {count} draws", highlight=False)
    if len(draws) >= envelope.FEWEST_DRAWS:
        found = envelope.envelope(envelope.figures_of(path), draws, count, order.scenario.seed)
        envelope.write(path, found)
        envelope.render(found, Console())
    return len(draws) == count


def _summarized(path: Path) -> dict[str, Any]:
    """The summary of a run directory, with its envelope of uncertainty if it has one."""
    from analysis import envelope
    from analysis.run import load_run
    from analysis.summary import summarize

    return summarize(load_run(path)) | {"uncertainty": envelope.read(path)}


def _report(path: Path, conditions: list[Any]) -> int:
    from analysis import envelope
    from analysis.show import render

    talk = Console(stderr=True)
    with talk.status("summarising") if talk.is_terminal else nullcontext():
        summary = _summarized(path)
    render(summary, Console())
    if summary["uncertainty"] is not None:
        envelope.render(summary["uncertainty"], Console())
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

    conditions = [parse(text) for text in args.fail_if]
    if args.run.is_file():
        raise LoadgenError(f"{args.run}: expected a run directory, got a file")
    if not args.json:
        return _report(args.run, conditions)
    summary = _summarized(args.run)
    print(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())
    return _verdict(summary, conditions)


def _serve(args: argparse.Namespace) -> int:
    from loadgen.server.host import serving
    from loadgen.server.service import Service

    foreground.silence_bad_http()
    launch = launch_flags.launch_of(args)
    for flag in launch_flags.without_effect(args):
        print(f"loadgen: note: {flag} changes nothing here", file=sys.stderr)

    async def serve() -> int:
        service = Service(launch)
        slow_s = launch.faults.slow_start_s
        slow = f", refusing connections for {slow_s:g} s" if slow_s else ""
        asked_to_end = foreground.asked_to_end()
        async with serving(service, address=(args.host, args.port), api_key=args.api_key) as host:
            print(
                f"loadgen: serving {service.limits.model_id} on simulated {launch.gpu} at {host.url} "
                f"({launch.dialect} dialect{slow}; Ctrl-C ends it)",
                file=sys.stderr,
                flush=True,
            )
            waits = [asyncio.create_task(event.wait()) for event in (asked_to_end, host.crashed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if host.crashed.is_set():
                print("loadgen: crashed on demand (crash_after_requests)", file=sys.stderr)
                return INVALID
            await host.drain()
        return OK

    with asyncio.Runner(loop_factory=clock.fast_loop) as runner:
        return runner.run(serve())


def _doctor(args: argparse.Namespace) -> int:
    from loadgen.doctor import render, report
    from loadgen.target import sidecar_token

    token = sidecar_token(args.sidecar_token_file) if args.sidecar else None
    with asyncio.Runner(loop_factory=clock.fast_loop) as runner:
        found = runner.run(report(args.url, args.api_key, sidecar=args.sidecar, token=token))
    if args.json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        render(found, Console())
    return OK if found["ok"] else INVALID


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
