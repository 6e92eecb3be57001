"""A comparison as tables that fit 80 columns; from 110 on with differences and p values. Verdicts first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_uppercase

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.compare.comparison import Against, Comparison, Headline
from analysis.compare.sides import printable
from analysis.show import interval, number, quantity
from loadgen.types import Estimate

WIDE = 110
_PREFIXED = ("s", "J", "W")
_KINDS = {
    "gpu": "GPU energy",
    "cpu": "host energy",
    "ram": "host energy",
    "latency": "latency",
    "throughput": "throughput",
}
_SCALES = ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))
_NONE, _ONE_SIDE = "no interval: ", "one side has none ("
_STYLES = {"equal": "green", "not equal": "red", "cannot be told": "yellow"}


def render(comparison: Comparison, console: Console) -> None:
    """Prints the comparison: validity, sides, then each side against the reference, then what differs."""
    _sides(comparison, console)
    for i, one in enumerate(comparison.against):
        console.print()
        _against(comparison, i, one, console)
    _listed(comparison, console)


def systematic_sentence(one: Against) -> str:
    """The systematic part of the ratio of GPU energies, or why it is not known."""
    if isinstance(one.systematic, str):
        return f"of the ratio of GPU energies not known: {one.systematic}"
    return f"ratio of GPU energies {one.systematic.describe().replace(' 1 ', ' ')}"


def _letter(i: int) -> str:
    """A, B, ..., Z, then A1, B1, ..."""
    turn, place = divmod(i, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(turn) if turn else "")


def _sides(comparison: Comparison, console: Console) -> None:
    invalid = [side for side in comparison.sides if not side.valid]
    for side in invalid:
        for reason in side.reasons:
            _line(console, "INVALID  ", f"{side.name}: {reason}", "red")
    if not invalid:
        _line(console, "valid  ", "every run", "green")
    for note in comparison.notes:
        _line(console, "note  ", note, "yellow")
    for i, side in enumerate(comparison.sides):
        words = [side.name, *(["the reference"] if i == 0 else []), *([] if side.valid else ["INVALID"])]
        if len(side.runs) > 1:
            words.append(f"{len(side.runs)} runs, {side.why}")
        ok, sent = (sum(len(getattr(run, what)) for run in side.runs) for what in ("ok", "requests"))
        words.append(f"{ok:,} of {sent:,} requests succeeded")
        _line(
            console, f"{_letter(i)}  ", f"{', '.join(words)}: {', '.join(run.path.name for run in side.runs)}"
        )


def _against(comparison: Comparison, i: int, one: Against, console: Console) -> None:
    a, b = _letter(0), _letter(i + 1)
    _line(console, f"{b} against {a}  ", one.conclusion)
    console.print(_table(comparison, i, wide=console.width >= WIDE), highlight=False)
    console.print(
        Text("* told from no difference at 5 % after Holm's correction", style="dim"), highlight=False
    )
    _line(console, "pairing  ", one.shared)
    _line(console, "load  ", one.load.word, _STYLES[one.load.word])
    for sentence in (*one.load.verdict.sentences, one.load.shape):
        console.print(Padding(Text(printable(sentence)), (0, 0, 0, 2)), highlight=False)
    _line(console, "systematic  ", f"{systematic_sentence(one)} (not in the intervals)")
    for reason in _without_interval(comparison.headlines, i):
        _line(console, "no interval  ", reason, "dim")
    for note in one.notes:
        _line(console, "note  ", note, "yellow")


def _table(comparison: Comparison, i: int, *, wide: bool) -> Table:
    a, b = _letter(0), _letter(i + 1)
    names = [
        f"{letter}{'' if side.valid else ' invalid'}"
        for letter, side in ((a, comparison.sides[0]), (b, comparison.sides[i + 1]))
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, no_wrap=True, justify="right")
    if wide:
        table.add_column(f"{b} - {a}", no_wrap=True, justify="left")
    table.add_column(f"{b} / {a}", no_wrap=True)
    if wide:
        table.add_column("p (Holm)", no_wrap=True, justify="right")
    table.add_column("", no_wrap=True)
    heading = None
    for row in comparison.headlines:
        if "estimated" in row.label and not row.name.endswith("per_request_j"):
            continue  # of a constant all rows say the same; --json has them
        if heading != (heading := f"{_KINDS[row.kind]}, {row.label}"):
            table.add_row(Text(heading, style="dim italic"))
        cells = [_value(row.values[0]), _value(row.values[i + 1])]
        if wide:
            cells.append(_difference(row.differences[i]))
        cells.append(_ratio(row.ratios[i]))
        if wide:
            cells.append(_p(row.p_adjusted[i]))
        table.add_row(row.title, *cells, Text("*" if row.told(i) else "", style="bold"))
    return table


def _value(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.unit in _PREFIXED:
        return quantity(estimate.value, estimate.unit)
    return f"{number(estimate.value)}{'/s' if estimate.unit == '1/s' else ''}"


def _difference(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    ends = [x for x in (estimate.value, estimate.low, estimate.high) if x is not None]
    largest = max(abs(x) for x in ends)
    scale, prefix = next(
        (s for s in _SCALES if largest >= s[0] and (s[0] <= 1 or estimate.unit != "s")), _SCALES[-1]
    )
    if estimate.unit not in _PREFIXED or largest == 0:
        scale, prefix = 1.0, ""
    unit = {"1": "", "1/s": "/s"}.get(estimate.unit, f" {prefix}{estimate.unit}")
    decimals = 0 if largest == 0 else max(0, 2 - math.floor(math.log10(largest / scale)))
    value, *interval = (f"{x / scale + 0.0:+,.{decimals}f}" for x in ends)
    return f"{value}{unit}" + (f" [{', '.join(interval)}]" if len(interval) == 2 else "")


def _ratio(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{number(estimate.value, 4)} {_interval(estimate, 4)}".rstrip()


def _interval(estimate: Estimate, digits: int = 3) -> str:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "unit": estimate.unit}
    return interval(ends, digits=digits)


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _without_interval(headlines: Sequence[Headline], i: int) -> list[str]:
    """Why ratios have no interval, one line a reason, with the headlines that it is of."""
    found: dict[str, list[str]] = {}
    for row in headlines:
        ratio = row.ratios[i]
        shown = "estimated" not in row.label or row.name.endswith("per_request_j")
        if ratio.low is None and shown and not row.name.endswith("total_j"):
            why = ratio.method.removeprefix("unavailable: ")
            if _ONE_SIDE in why:
                why = why.partition(_ONE_SIDE)[2].removesuffix(")")
            found.setdefault(why.rpartition(_NONE)[2], []).append(row.title.strip())
    return [f"{', '.join(titles)}: {why}" for why, titles in found.items()]


def _listed(comparison: Comparison, console: Console) -> None:
    console.print()
    if not comparison.listed:
        _line(console, "differences  ", "none in hardware, server, sampling, scenario and software")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("what differs", overflow="fold")
    for i in range(len(comparison.sides)):
        table.add_column(_letter(i), overflow="fold")
    section = None
    for row in comparison.listed:
        if row.section != section:
            section = row.section
            table.add_row(Text(section, style="dim italic"))
        table.add_row(Text(row.key), *(Text(value) for value in row.values))
    console.print(table, highlight=False)


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    line = Text(label, style=f"bold {style}".strip())
    line.append(Text(printable(text), style="" if style in ("green", "yellow") else style or "not bold"))
    console.print(Padding(line, 0), highlight=False)
