"""``loadgen theory llm``: its flags, and its answer as JSON or as tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen.physics.study.answer import answer
from loadgen.physics.study.llm import SCOPES
from loadgen.terminal import bare_table, print_json
from loadgen.verbs.numbers import MOST_SEQUENCES, MOST_TOKENS, at_least

_DESCRIPTION = """Seconds of prefill and decode by the roofline of the thank-you study (arXiv 2601.22362,
Tables 5-8): each operation takes the larger of its arithmetic and its memory time, and a phase
their sum. One word size for all values, that of a weight; no dispatch time, no idle power. The laws
that the study fitted to its measurements are given apart, as "fit", for the one model and board
they were fitted to; only they have an energy."""
_EPILOG = """efficiencies (shares of the board's peaks: compute, bandwidth):
  main 0.675, 0.443    appendix 0.7, 0.28    raw 1, 1    or two numbers: 0.6,0.8

scopes:
  dominant      Q, K, V, attention, MLP and LM head: the study's equations
  dominant+wo   and the output projection, which its tables list (default)
  full          every row of its tables

With --operations, FLOP, bytes and time are those of all executions in the phase (count of them), so
that the times add up to prefill_s and decode_s. Of g output tokens the prefill gives the first:
decode has g - 1 steps. In JSON null is "never" under switching, and elsewhere has its reason.

examples:
  loadgen theory llm --prompt-tokens 1200 --output-tokens 52
  loadgen theory llm --gpu a100-sxm --dtype bfloat16 --batch 32 --operations
  loadgen theory llm --model path/to/config.json --efficiency raw --scope full --json

exit status: 0, or 2 for a mistake."""


def add_llm(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds ``llm`` to the subparsers of ``theory``; ``go`` answers and prints (see ``show``)."""
    llm = verbs.add_parser(
        "llm",
        help="the thank-you study's roofline of a language model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    default = " (default %(default)s)"
    llm.add_argument(
        "--model", metavar="M", default="llama-3.1-8b", help=f"an id or the path of a config.json{default}"
    )
    llm.add_argument("--gpu", metavar="G", default="h100-sxm", help=f"the board{default}")
    llm.add_argument("--dtype", metavar="D", default="float32", help=f"number format{default}")
    llm.add_argument(
        "--efficiency", metavar="E", default="main", help=f"a pair's name, or two shares{default}"
    )
    llm.add_argument("--scope", choices=SCOPES, default="dominant+wo", help=f"operations counted{default}")
    llm.add_argument(
        "--batch",
        metavar="N",
        type=at_least(1, MOST_SEQUENCES),
        default=1,
        help=f"equal sequences at a time{default}",
    )
    llm.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=at_least(1, MOST_TOKENS),
        default=1200,
        help=f"length of a prompt, s{default}",
    )
    llm.add_argument(
        "--output-tokens",
        metavar="N",
        type=at_least(0, MOST_TOKENS),
        default=52,
        help=f"length of a reply, g{default}",
    )
    llm.add_argument("--operations", action="store_true", help="also each operation")
    llm.add_argument("--json", action="store_true", help="one JSON object on stdout")
    llm.set_defaults(go=go, parser=llm)


def show(args: argparse.Namespace) -> int:
    """Prints the answer; returns the exit status. Raises ConfigError for what is unknown."""
    found = answer(
        args.model,
        args.gpu,
        args.dtype,
        efficiency=args.efficiency,
        scope=args.scope,
        batch=args.batch,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        operations=args.operations,
    )
    if args.json:
        print_json(found)
    else:
        render(found, Console())
    return 0


def render(found: Mapping[str, Any], console: Console) -> None:
    """The tables for people: times, regimes, switching points, operations where there are some."""
    pair, closed, fit = found["efficiency"], found["closed_form"], found["fit"]
    console.print(
        f"{found['model']} in {found['dtype']} on {found['gpu']}, batch {found['batch']}, "
        f"s = {found['prompt_tokens']}, g = {found['output_tokens']}, {found['scope']}, "
        f"{pair['name']} ({pair['compute']:g}, {pair['bandwidth']:g}); estimated",
        highlight=False,
        markup=False,
    )
    times = bare_table("", "prefill", "decode", "total", "energy")
    times.add_row("roofline", *(_seconds(found[key]) for key in ("prefill_s", "decode_s", "total_s")), "-")
    if fit["reason"] is None:
        seconds = (_seconds(fit[key]) for key in ("prefill_s", "decode_s", "total_s"))
        times.add_row("fit", *seconds, f"{fit['energy_wh']:.6g} Wh")
    console.print(times)
    if fit["reason"] is not None:
        console.print(f"no fit: {fit['reason']}", highlight=False, markup=False)
    for text in _sentences(closed):
        console.print(text, highlight=False, markup=False)
    points = bare_table("compute bound from", "")
    for name, value in found["switching"].items():
        what, _, unit = name.rpartition("_")
        points.add_row(what.replace("_", " "), "never" if value is None else f"{value:.2f} {unit}")
    console.print(points)
    for phase, operations in found.get("operations", {}).items():
        console.print(_operations(phase, operations))


def _sentences(closed: Mapping[str, Any]) -> Iterable[str]:
    weights = f"arithmetic outweighs the weights from {closed['linear_from_tokens']:,.1f} tokens"
    if closed["prefill_reason"] is not None:
        yield f"prefill: {weights}; {closed['prefill_reason']}"
    else:
        yield (
            f"prefill: {closed['prefill_regime']} in s; {weights}, attention the products from "
            f"{closed['quadratic_from_tokens']:,.0f}"
        )
    if closed["decode_reason"] is not None:
        yield f"decode: no closed form, {closed['decode_reason']}"
    else:
        yield (
            f"decode: {closed['decode_regime']}; (g-1)(A + B(g+2s)) with A = {closed['a_s']:.6e} s, "
            f"B = {closed['b_s']:.6e} s; knees g* = {closed['knee_output_tokens']:,.0f}, "
            f"s* = {closed['knee_prompt_tokens']:,.0f}"
        )


def _operations(phase: str, operations: Iterable[Mapping[str, Any]]) -> Table:
    table = bare_table(phase, "where", "count", "FLOP", "bytes", "time", "bound")
    for row in operations:
        table.add_row(
            row["name"],
            row["where"],
            str(row["count"]),
            f"{row['flop']:.4e}",
            f"{row['bytes']:.4e}",
            _seconds(row["time_s"]),
            row["bound"],
        )
    return table


def _seconds(value: float) -> str:
    return f"{value:.6g} s"
