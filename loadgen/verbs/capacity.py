"""The verb ``loadgen capacity``: its flags. What it does belongs to `analysis` and is handed in."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadgen.verbs.compare import figure
from loadgen.verbs.numbers import at_least

_DESCRIPTION = """How many boards, of which kind, does this traffic take under this SLO, and what does a good
request cost in energy, money and CO2e? Every candidate's highest rate is searched on the embedded
engine: bracketed by the fluid bound, confirmed at 10,000 requests x 5 seeds. All figures are simulated."""
_EPILOG = """The plan file has the keys of docs/capacity.md; a flag overrides its key, --set any other.

examples
  loadgen capacity --rate 40 --prompt-tokens 1300 --output-tokens 250 --ttft 0.5 --tpot 0.03
  loadgen capacity --rate 13 --prompt-tokens 1300 --output-tokens 250 --tpot 0.03 --gpu h100-sxm \\
      --price h100-sxm=4.02 --pue 1.2 --grid 400
  loadgen capacity scenarios/capacity/chat_day.yaml --gpu h100-sxm --gpu l40s --figure pareto.svg
  loadgen capacity scenarios/capacity/azure_trace.yaml --set traffic.trace=TRACE.csv --json

exit status: 0 answered, 1 no candidate can serve it, 2 a mistake in the plan or the flags."""

_KEYS = {
    "rate": "traffic.rate_rps",
    "prompt_tokens": "lengths.prompt_tokens",
    "output_tokens": "lengths.output_tokens",
    "model": "model",
    "ttft": "slo.ttft_s",
    "tpot": "slo.tpot_s",
    "e2e": "slo.e2e_s",
    "percentile": "slo.percentile",
    "pue": "pue",
    "grid": "grid",
    "headroom": "headroom",
    "seed": "seed",
}
_LISTS = {"gpu": "candidates.gpus", "dtype": "candidates.dtypes", "shards": "candidates.shards"}


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers; ``go`` answers and prints, and returns the exit status.

    ``go`` is given ``plan`` (a path or None), ``given`` (see `given_of`), ``json``, ``workers``, ``figure``.
    """
    capacity = verbs.add_parser(
        "capacity",
        help="how many of which boards a traffic takes, and what a good request costs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    add = capacity.add_argument
    add("plan", metavar="PLAN", type=Path, nargs="?", help="a plan file; without one, flags alone")
    add("--rate", metavar="R", help="requests per second wanted of the whole service")
    add("--prompt-tokens", metavar="N", help="tokens of a prompt")
    add("--output-tokens", metavar="N", help="tokens of a reply")
    add("--model", metavar="M", help="a model's id or a config.json (default llama-3.1-8b)")
    add("--gpu", metavar="G", action="append", help="a candidate board; repeatable (default: all)")
    add("--dtype", metavar="D", action="append", help="a number format; repeatable (default bfloat16)")
    add("--shards", metavar="N", action="append", help="boards a replica; repeatable (default 1)")
    add("--ttft", metavar="S", help="limit on the time to the first token, seconds from demand")
    add("--tpot", metavar="S", help="limit on the time per token after it, seconds")
    add("--e2e", metavar="S", help="limit on the whole time, seconds from demand")
    add("--percentile", metavar="P", help="share of requests that must keep all limits, in %% (default 95)")
    add("--price", metavar="G=X", action="append", default=[], help="price of a board's hour; repeatable")
    add("--pue", metavar="X", help="energy of the data centre over that of its computers")
    add("--grid", metavar="G", help="g CO2e per kWh, or a code such as FR, DE, US, world")
    add("--headroom", metavar="X", help="share of the highest rate to keep free (default 0.15)")
    add("--seed", metavar="N", help="seed of arrivals and lengths (default 1)")
    add("--set", metavar="K=V", action="append", default=[], help="any key of the plan; repeatable")
    add("--figure", metavar="F", type=figure, help="write the Pareto figure: .svg, .png or .pdf")
    add("--workers", metavar="N", type=at_least(1), help="processes (default: one per CPU)")
    add("--json", action="store_true", help="one JSON object on stdout")

    def checked(args: argparse.Namespace) -> int:
        for flag, words in (("--price", args.price), ("--set", args.set)):
            for word in words:
                if not all(word.partition("=")[::2]):
                    capacity.error(
                        f"{flag}: expected {'GPU' if flag == '--price' else 'KEY'}=VALUE, got {word!r}"
                    )
        args.given = given_of(args)
        return go(args)

    capacity.set_defaults(go=checked, parser=capacity)


def given_of(args: argparse.Namespace) -> Sequence[tuple[str, str, str]]:
    """What the flags set of the plan: (dotted key, value as YAML, the flag)."""
    given = [word.split("=", 1) for word in args.set]
    found = [(key, value, f"--set {key}") for key, value in given]
    for name, key in _KEYS.items():
        value = getattr(args, name)
        if value is not None:
            found.append((key, value, f"--{name.replace('_', '-')}"))
    for name, key in _LISTS.items():
        values = getattr(args, name)
        if values is not None:
            found.append((key, f"[{', '.join(values)}]", f"--{name}"))
    return [*found, *(("price_per_gpu_h", word, "--price") for word in args.price)]
