"""The verbs and their wiring, nothing else. stdout is data, stderr is talk.

Exit status: 0 valid, 1 run invalid or a --fail-if met, 2 usage or configuration,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import webbrowser
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loadgen import clock, foreground, launch_flags, overrides, shipped
from loadgen.clients.redaction import redact_url
from loadgen.config import Tree, read_yaml
from loadgen.errors import LoadgenError
from loadgen.scenario import Scenario
from loadgen.scenario_file import validate
from loadgen.terminal import print_json
from loadgen.verbs import service
from loadgen.verbs.analyze import FORMATS
from loadgen.verbs.parser import USAGE, parse_arguments
from loadgen.verbs.theory_video import show_video

if TYPE_CHECKING:
    from loadgen.experiment import Order

OK, INVALID, INTERRUPTED = 0, 1, foreground.INTERRUPTED


def _resolve(args: argparse.Namespace) -> tuple[Scenario, str, Tree]:
    path = shipped.find(args.scenario, "scenario")
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
    from analysis.progress import working
    from analysis.show import render

    with working("summarising"):
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
    from loadgen.server.deployment import Deployment

    scenario, _, _ = _resolve(args)
    if not scenario.server.url:
        Deployment(scenario.server.launch(scenario.seed))  # known, and large enough
    facts = describe_plan(scenario, build(scenario))
    facts["target"] = redact_url(facts["target"])
    if args.json:
        print_json(facts)
    else:
        table = Table.grid(padding=(0, 2))
        for label, value in plan_lines(facts):
            table.add_row(f"[bold]{label}[/]", value)
        Console().print(table)
    return OK


def _summary(args: argparse.Namespace) -> int:
    from analysis.fail_if import parse

    conditions = [parse(text) for text in args.fail_if]
    if not args.json:
        return _report(args.run, conditions)
    summary = _summarized(args.run)
    print_json(summary)
    return _verdict(summary, conditions)


def _analyze(args: argparse.Namespace) -> int:
    from analysis.study.analyze import analyze, options_of

    if args.format is not None and args.export is None:
        args.parser.error("--format is of the tables of --export DIR")
    options = options_of(args, service.given(args))
    formats = args.format or FORMATS
    valid = analyze(args.run, options, as_json=args.json, directory=args.export, formats=formats)
    return OK if valid else INVALID


def _compare(args: argparse.Namespace) -> int:
    from analysis.compare.view import report
    from analysis.figures.files import write_forest

    if args.metric is not None and args.figure is None:
        args.parser.error("--metric names the headline of --figure F")
    draw = None
    if args.figure is not None:
        draw = partial(write_forest, path=args.figure, metric=args.metric or "energy_per_request_j")
    valid = report(args.runs, args.groups, tolerance=args.tolerance, as_json=args.json, draw=draw)
    return OK if valid else INVALID


def _fit(args: argparse.Namespace) -> int:
    from analysis.figures.files import write_residuals
    from analysis.fit.view import report

    draw = None if args.figure is None else partial(write_residuals, path=args.figure)
    report(args.runs, output=args.output, as_json=args.json, draw=draw)
    return OK


def _calibrate(args: argparse.Namespace) -> int:
    from analysis.calibrate.view import report

    told = {"gpu": args.gpu, "model": args.model, "dtype": args.dtype}
    report(args.runs, output=args.output, as_json=args.json, **told)
    return OK


def _validate(args: argparse.Namespace) -> int:
    from analysis.calibrate.validation_view import report

    told = {"gpu": args.gpu, "model": args.model, "dtype": args.dtype}
    report(args.run, settings=args.set, as_json=args.json, **told)
    return OK


def _page(args: argparse.Namespace) -> int:
    from analysis.report.document import report
    from analysis.study.analyze import options_of

    made = report(args.runs, options_of(args, service.given(args)), output=args.output, figures=args.figures)
    print(made.file)
    if args.open:
        webbrowser.open(made.file.resolve().as_uri())
    return OK if made.valid else INVALID


def _capacity(args: argparse.Namespace) -> int:
    from analysis.capacity.report import report
    from analysis.figures.files import write_pareto

    draw = None if args.figure is None else partial(write_pareto, path=args.figure)
    answered = report(args.plan, args.given, as_json=args.json, workers=args.workers, draw=draw)
    return OK if answered else INVALID


def _lint(args: argparse.Namespace) -> int:
    from analysis.claims.view import report
    from analysis.lint.view import report_run

    if args.claim is not None:
        possible = report(args.claim, as_json=args.json)
    else:
        possible = report_run(args.run, as_json=args.json, strict=args.strict)
    return OK if possible else INVALID


def _sweep(args: argparse.Namespace) -> int:
    from analysis.figures.files import write_sweep_figures
    from analysis.sweeps import of_run, report
    from loadgen.sweep.session import order_of, points_of, run

    if args.dry_run:
        print("\n".join(points_of(order_of(args))))
        return OK
    swept = run(order_of(args), of_run)
    report(swept.path, swept.rows, swept.manifest, swept.wanted, as_json=args.json, draw=write_sweep_figures)
    return OK if swept.whole else INTERRUPTED


def _theory_video(args: argparse.Namespace) -> int:
    draw = None
    if args.figure is not None:
        from analysis.figures.files import write_scaling

        draw = partial(write_scaling, path=args.figure)
    return show_video(args, draw)


def _serve(args: argparse.Namespace) -> int:
    from loadgen.server.host import serving
    from loadgen.server.service import Service

    foreground.silence_bad_http()
    launch = launch_flags.launch_of(args)
    for flag in launch_flags.without_effect(args):
        print(f"loadgen: note: {flag} changes nothing here", file=sys.stderr)

    async def serve() -> int:
        service = Service(launch)
        for note in service.deployment.notes:
            print(f"loadgen: note: {note}", file=sys.stderr)
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
        print_json(found)
    else:
        render(found, Console())
    return OK if found["ok"] else INVALID


GO = {
    "run": _run,
    "check": _check,
    "summary": _summary,
    "analyze": _analyze,
    "report": _page,
    "compare": _compare,
    "fit": _fit,
    "calibrate": _calibrate,
    "validate": _validate,
    "lint": _lint,
    "capacity": _capacity,
    "sweep": _sweep,
    "theory video": _theory_video,
    "serve": _serve,
    "doctor": _doctor,
}
"""What each verb does; `sidecar` and the other models of `theory` bring their own."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    with foreground.reader_may_leave():
        return _go(parse_arguments(GO, argv))


def _go(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="loadgen: %(name)s: %(message)s", stream=sys.stderr)
    try:
        return int(args.go(args))
    except LoadgenError as exc:
        for line in str(exc).splitlines():
            print(f"loadgen: {line}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
