"""A fitted model for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from analysis.console import bare_table, line
from analysis.fit.estimate import CONDITION
from analysis.fit.file import as_object, write_model
from analysis.fit.fitting import fit
from analysis.fit.model import Fitted, Model, Term
from analysis.progress import working
from analysis.run import load_run
from analysis.words import WH_PER_J
from loadgen.terminal import print_json


def report(
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    as_json: bool = False,
    draw: Callable[[Model], object] | None = None,
) -> Model:
    """Fits the runs and prints the model on stdout; writes it where asked.

    ``draw`` sees the model before anything is printed, so that stdout is empty when it fails.
    Raises FitError when they cannot be fitted or written, RunDirError for what is no run.
    """
    with working("fitting"):
        model = fit([load_run(path) for path in paths])
    if output is not None:
        write_model(model, output)
    if draw is not None:
        draw(model)
    if as_json:
        print_json(as_object(model))
    else:
        render(model, Console())
    return model


def render(model: Model, console: Console) -> None:
    """What was fitted, a table a fit with how good it is and where it holds, then what was refused."""
    subject = ", ".join(
        f"{key} {value}" for key, value in model.subject.items() if value is not None and key != "boards"
    )
    line(console, "fitted to  ", subject or "a server that tells neither model nor board")
    energies = f"energies {model.label}" if model.label is not None else "no energies"
    counts = f"{model.requests} successes in {len(model.runs)} run{'s' * (len(model.runs) != 1)}"
    line(
        console,
        "load  ",
        f"{model.load}: {counts}, {model.alone} of them alone; {energies}",
        "" if model.load == "one at a time" else "yellow",
    )
    for note in model.notes:
        _aside(console, note)
    for found in model.fitted:
        _fitted(console, found)
    for name, reason in model.refused.items():
        line(console, f"{name}  ", f"not fitted: {reason}", "yellow")
    if model.weights is not None:
        line(console, "weights  ", model.weights.source)


def _fitted(console: Console, found: Fitted) -> None:
    console.print()
    line(console, f"{found.name}  ", found.formula)
    table = bare_table(header=False)
    for column in ("name", "value", "interval", "unit", "Wh"):
        table.add_column(no_wrap=True, justify="right" if column in ("value", "Wh") else "left")
    reasons = []
    for term in found.terms:
        if term.value is None:
            table.add_row(term.name, "-", "", term.unit, "")
            reasons.append(f"{term.name} {term.reason}")
            continue
        table.add_row(term.name, _number(term.value), _interval(term), term.unit, _in_wh(term))
    console.print(Padding(table, (0, 0, 0, 2)), highlight=False)
    quality = [
        f"R2 {found.r2:.4f}" if found.r2 is not None else "R2 - (a ratio)",
        f"residual {_number(found.spread)} {found.unit}",
        f"median error {_share(found.relative_error)}",
        f"condition {found.condition:.3g}",
        f"n {found.n}",
    ]
    _aside(console, ", ".join(quality), "yellow" if found.condition >= CONDITION else "dim")
    ranges = [
        f"{name} {r.p5:.4g} to {r.p95:.4g} ({r.least:.4g} to {r.greatest:.4g})"
        for name, r in found.range.items()
    ]
    _aside(console, f"holds for {', '.join(ranges)}: 5 to 95 % (all)")
    for sentence in (*reasons, *found.notes):
        _aside(console, sentence, "yellow")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2g} %"


def _interval(term: Term) -> str:
    return "no interval" if term.low is None or term.high is None else f"[{term.low:.4g}, {term.high:.4g}]"


def _in_wh(term: Term) -> str:
    """Joules as people read them; nothing for other units."""
    if term.value is None or not term.unit.startswith("J"):
        return ""
    return f"{WH_PER_J * term.value:.3g} {term.unit.replace('J', 'Wh', 1)}"


def _aside(console: Console, text: str, style: str = "dim") -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2)), highlight=False)
