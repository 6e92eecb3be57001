"""A validation for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from analysis.calibrate.validation import Validation, as_object, validate
from analysis.console import bare_table, line
from analysis.progress import working
from analysis.run import load_run
from analysis.words import interval, quantity
from loadgen.terminal import print_json


def report(
    path: Path,
    *,
    gpu: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    settings: Sequence[str] = (),
    as_json: bool = False,
) -> Validation:
    """Validates a run and prints the residuals on stdout. Raises as `validate`."""
    with working("serving the load again"):
        found = validate(load_run(path), gpu=gpu, model=model, dtype=dtype, settings=settings)
    if as_json:
        print_json(as_object(found))
    else:
        render(found, Console())
    return found


def render(found: Validation, console: Console) -> None:
    """Each figure on both sides with its residual, then the residuals of the same requests."""
    line(console, "run  ", f"{found.run} ({found.label}), {found.requests} requests")
    line(console, "emulator  ", f"{found.model} in {found.dtype} on {found.gpu}")
    console.print()
    table = bare_table("figure", found.label, "95 % interval", "emulated", "residual", "inside")
    for r in found.residuals:
        if r.measured.value is None:
            continue
        table.add_row(
            r.name,
            quantity(r.measured.value, r.unit, digits=3),
            interval(r.measured, digits=3) or "none",
            quantity(r.emulated, r.unit, digits=3),
            _signed(r.error),
            {True: "yes", False: "no", None: "-"}[r.inside],
        )
    console.print(Padding(table, (0, 0, 0, 2)), highlight=False)
    console.print()
    pairs = bare_table("the same request's", "median residual", "median size", "n")
    for p in found.per_request:
        pairs.add_row(p.name, _signed(p.bias.value), _share(p.size.value), str(p.bias.n))
    console.print(Padding(pairs, (0, 0, 0, 2)), highlight=False)
    if found.no_energy is not None:
        line(console, "energy  ", f"not compared: {found.no_energy}", "yellow")
    for note in found.notes:
        line(console, "note  ", note, "yellow")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
