"""A fitted model for people and for machines."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.fit.estimate import CONDITION
from analysis.fit.file import as_object, write_model
from analysis.fit.fitting import fit
from analysis.fit.model import FitError, Fitted, Model, Term
from analysis.progress import working
from analysis.run import load_run

J_PER_WH = 3600.0


def report(
    paths: Sequence[Path], *, output: Path | None = None, figure: Path | None = None, as_json: bool = False
) -> Model:
    """Fits the runs and prints the model on stdout; writes it and its residuals where asked.

    Raises FitError when they cannot be fitted or written, RunDirError for what is no run.
    """
    with working("fitting"):
        model = fit([load_run(path) for path in paths])
    if output is not None:
        write_model(model, output)
    if figure is not None:
        _draw(model, figure)
    if as_json:
        print(orjson.dumps(as_object(model), option=orjson.OPT_INDENT_2).decode())
    else:
        render(model, Console())
    return model


def render(model: Model, console: Console) -> None:
    """What was fitted, a table a fit with how good it is and where it holds, then what was refused."""
    subject = ", ".join(
        f"{key} {value}" for key, value in model.subject.items() if value is not None and key != "boards"
    )
    _line(console, "fitted to  ", subject or "a server that tells neither model nor board")
    energies = f"energies {model.label}" if model.label is not None else "no energies"
    counts = f"{model.requests} successes in {len(model.runs)} run{'s' * (len(model.runs) != 1)}"
    _line(
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
        _line(console, f"{name}  ", f"not fitted: {reason}", "yellow")
    if model.weights is not None:
        _line(console, "weights  ", model.weights.source)


def _fitted(console: Console, found: Fitted) -> None:
    console.print()
    _line(console, f"{found.name}  ", found.formula)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
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


def _draw(model: Model, path: Path) -> list[Path]:
    """The residuals of every fit, a file each: ``F-t_prefill.svg`` of ``F.svg``."""
    from analysis import figures

    if importlib.util.find_spec("matplotlib") is None:
        raise FitError("fit: --figure needs matplotlib: pip install 'loadgen[report]'")
    written = []
    for found in model.fitted:
        drawn = figures.residuals(found, label=model.label)
        if drawn is None:
            continue
        file = path.with_name(f"{path.stem}-{found.name}{path.suffix}")
        try:
            written.append(figures.save(drawn, file))
        except OSError as exc:
            raise FitError(f"{file}: cannot be written: {exc.strerror}") from exc
    if not written:
        raise FitError(f"{path}: nothing to draw: no fit was made")
    return written


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
    return f"{term.value / J_PER_WH:.3g} {term.unit.replace('J', 'Wh', 1)}"


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    line = Text(label, style=f"bold {style}".strip())
    line.append(Text(text, style=style or "not bold"))
    console.print(line, highlight=False)


def _aside(console: Console, text: str, style: str = "dim") -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2)), highlight=False)
