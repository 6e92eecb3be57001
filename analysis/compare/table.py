"""A comparison as tables that fit 80 columns; from 110 on with differences and p values. Verdicts first."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.compare.comparison import Against, Comparison, Headline
from analysis.console import bare_table, line
from analysis.words import PREFIXED, in_one_scale, interval, number, printable, quantity
from loadgen.types import Estimate

WIDE = 110
_KINDS = {
    "gpu": "GPU energy",
    "cpu": "host energy",
    "ram": "host energy",
    "latency": "latency",
    "throughput": "throughput",
}
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
            line(console, "INVALID  ", f"{side.name}: {reason}", "red")
    if not invalid:
        line(console, "valid  ", "every run", "green")
    for note in comparison.notes:
        line(console, "note  ", note, "yellow")
    for i, side in enumerate(comparison.sides):
        words = [side.name, *(["the reference"] if i == 0 else []), *([] if side.valid else ["INVALID"])]
        if len(side.runs) > 1:
            words.append(f"{len(side.runs)} runs, {side.why}")
        ok, sent = (sum(len(getattr(run, what)) for run in side.runs) for what in ("ok", "requests"))
        words.append(f"{ok:,} of {sent:,} requests succeeded")
        line(
            console, f"{_letter(i)}  ", f"{', '.join(words)}: {', '.join(run.path.name for run in side.runs)}"
        )


def _against(comparison: Comparison, i: int, one: Against, console: Console) -> None:
    a, b = _letter(0), _letter(i + 1)
    line(console, f"{b} against {a}  ", one.conclusion)
    console.print(_table(comparison, i, wide=console.width >= WIDE), highlight=False)
    console.print(
        Text("* told from no difference at 5 % after Holm's correction", style="dim"), highlight=False
    )
    line(console, "pairing  ", one.shared)
    line(console, "load  ", one.load.word, _STYLES[one.load.word])
    for sentence in (*one.load.verdict.sentences, one.load.shape):
        console.print(Padding(Text(printable(sentence)), (0, 0, 0, 2)), highlight=False)
    line(console, "systematic  ", f"{systematic_sentence(one)} (not in the intervals)")
    for reason in _without_interval(comparison.headlines, i):
        line(console, "no interval  ", reason, "dim")
    for note in one.notes:
        line(console, "note  ", note, "yellow")


def _table(comparison: Comparison, i: int, *, wide: bool) -> Table:
    a, b = _letter(0), _letter(i + 1)
    names = [
        f"{letter}{'' if side.valid else ' invalid'}"
        for letter, side in ((a, comparison.sides[0]), (b, comparison.sides[i + 1]))
    ]
    table = bare_table()
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
    if estimate.unit in PREFIXED:
        return quantity(estimate.value, estimate.unit)
    return f"{number(estimate.value)}{'/s' if estimate.unit == '1/s' else ''}"


def _difference(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    ends = [x for x in (estimate.value, estimate.low, estimate.high) if x is not None]
    scale, prefix, decimals = in_one_scale(ends, estimate.unit)
    unit = {"1": "", "1/s": "/s"}.get(estimate.unit, f" {prefix}{estimate.unit}")
    value, *spread = (f"{x / scale + 0.0:+,.{decimals}f}" for x in ends)
    return f"{value}{unit}" + (f" [{', '.join(spread)}]" if len(spread) == 2 else "")


def _ratio(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{number(estimate.value, 4)} {interval(estimate, digits=4)}".rstrip()


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
        line(console, "differences  ", "none in hardware, server, sampling, scenario and software")
        return
    table = bare_table()
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
