"""``loadgen theory errata``: what the studied documents state, recomputed; as a table, JSON or Markdown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen.config import near
from loadgen.errors import ConfigError
from loadgen.physics.errata.collection import all_errata
from loadgen.physics.errata.digits import number, quantity
from loadgen.physics.errata.erratum import VERDICTS, Erratum
from loadgen.physics.errata.markdown import COMMAND, SIGNS, markdown, verdict_counts
from loadgen.terminal import print_json

_DESCRIPTION = """Every figure that the two studied documents state, beside what their own formulas and tables
give, computed now, and the verdict: reproduces, typo, inconsistent, not physical and so on. A: the
report on language models and serving, B: the text-to-video paper, F: other statements of both,
N: what nothing can check."""
_EPILOG = f"""examples:
  loadgen theory errata                  all of them, a line each
  loadgen theory errata A26 B10          these, with every figure and the likely cause
  loadgen theory errata --verdict typo
  loadgen theory errata --json | jq '.errata[] | select(.verdict == "not physical") | .id'
  {COMMAND}

exit status: 0, 2 for an unknown id or verdict."""


def add_errata(models: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds ``errata`` to the subparsers of ``theory``; ``go`` prints and returns the exit status."""
    errata = models.add_parser(
        "errata",
        help="what the studies state, and what their formulas give",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    errata.add_argument(
        "ids", nargs="*", metavar="ID", help="entries to show in full: A1 to A36, B1 to B23, ..."
    )
    errata.add_argument("--verdict", metavar="V", help="only entries of this verdict")
    form = errata.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on stdout")
    form.add_argument("--markdown", action="store_true", help="docs/errata.md on stdout")
    errata.set_defaults(go=go, parser=errata)


def show_errata(args: argparse.Namespace) -> int:
    """What ``errata`` does. Raises ConfigError for an unknown id or verdict."""
    found = chosen(all_errata(), args.ids, args.verdict)
    if args.json:
        print_json(as_object(found))
    elif args.markdown:
        sys.stdout.write(markdown(found))
    else:
        render(found, Console(highlight=False, markup=False), figures=bool(args.ids))
    return 0


def chosen(errata: Sequence[Erratum], ids: Sequence[str], verdict: str | None) -> list[Erratum]:
    """The entries of these ids (all if none), of this verdict (any if None), in their order."""
    known = [entry.id for entry in errata]
    wanted = [name.upper() for name in ids]
    for given, name in zip(ids, wanted, strict=True):
        if name not in known:
            raise ConfigError(
                f"errata: expected ids of A1-A36, B1-B23, F1-F12, N1-N8, got {given}{near(name, known)}"
            )
    if verdict is not None and verdict not in VERDICTS:
        raise ConfigError(
            f"--verdict: expected one of {', '.join(VERDICTS)}; got {verdict}{near(verdict, VERDICTS)}"
        )
    return [
        entry
        for entry in errata
        if (not wanted or entry.id in wanted) and (verdict is None or entry.verdict == verdict)
    ]


def as_object(errata: Sequence[Erratum]) -> dict[str, Any]:
    """Entries and the count of each verdict as plain data."""
    return {"verdicts": verdict_counts(errata), "errata": [entry.as_dict() for entry in errata]}


def render(errata: Sequence[Erratum], console: Console, *, figures: bool) -> None:
    """A line for each entry; with ``figures`` each in full."""
    if figures:
        for entry in errata:
            _in_full(entry, console)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("where", overflow="fold", max_width=30)
    table.add_column("stated", overflow="fold")
    for entry in errata:
        table.add_row(entry.id, entry.verdict, entry.where, entry.stated)
    console.print(table)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdict_counts(errata).items())
    console.print(f"{len(errata)} entries: {counts}. Figures and causes: loadgen theory errata ID")


def _in_full(entry: Erratum, console: Console) -> None:
    how = " (by reading)" if entry.read else ""
    console.print(f"{entry.id}  {entry.document}, {entry.where}: {entry.verdict}{how}", style="bold")
    console.print(entry.stated)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="bold")
    for name in ("", "stated", "", "computed", "ratio", ""):
        table.add_column(name, justify="left" if not name else "right")
    for figure in entry.figures:
        table.add_row(
            figure.what,
            quantity(figure.stated, figure.unit),
            "" if figure.role == "beside" else SIGNS[figure.relation],
            quantity(figure.given, figure.unit),
            "" if figure.ratio is None else number(figure.ratio),
            entry.verdict_on(figure) or (f"measured: {figure.source}" if figure.source else ""),
        )
    if entry.figures:
        console.print(table)
    if entry.cause:
        console.print(entry.cause)
    console.print()
