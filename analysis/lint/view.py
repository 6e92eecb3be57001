"""A run's verdict for people and for machines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from analysis import energy
from analysis.console import bare_table
from analysis.lint.judge import judge
from analysis.lint.rule import Rule, Verdict, Word
from analysis.plain import plain
from analysis.progress import working
from analysis.run import Run, load_run
from analysis.words import PREFIXED, number, quantity
from loadgen.terminal import print_json

_STYLES: dict[Word, str] = {"invalid": "red", "warning": "yellow", "holds": "green", "not judged": "dim"}


def report_run(path: Path | str, *, as_json: bool, strict: bool) -> bool:
    """Judges a run directory and prints the verdict on stdout; whether it passes.

    A run passes when no rule makes it invalid; ``strict``: nor warns.
    Raises RunDirError for what is no run directory or cannot be read.
    """
    path = Path(path)
    with working("judging the run"):
        run = load_run(path)
        verdict = verdict_of(run)
    if as_json:
        print_json(as_object(run, verdict))
    else:
        render(run, verdict, Console())
    return verdict.valid and not (strict and verdict.warnings)


def verdict_of(run: Run) -> Verdict:
    """Every rule's word on a run, its energies measured over the blocks of its summary."""
    return judge(run, energy.measure_window(run, energy.blocks_of(run)))


def as_object(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Keys: ``run``, ``name``, ``valid``, ``verdict`` (a sentence), ``reasons``, ``warnings``, ``counts`` of
    each word, ``rules``: each with the fields of `analysis.lint.Rule`, in the catalogue's order."""
    return {
        "run": str(run.path),
        "name": run.name,
        "valid": verdict.valid,
        "verdict": sentence(verdict),
        "reasons": list(verdict.reasons),
        "warnings": list(verdict.warnings),
        "counts": _counts(verdict),
        "rules": plain(verdict.rules),
    }


def sentence(verdict: Verdict) -> str:
    """The verdict in one line, such as ``valid: 25 rules hold, 1 warns, 19 were not judged``."""
    counts = _counts(verdict)
    words = [f"{counts['invalid']} rule{'s' * (counts['invalid'] != 1)} broken"] if not verdict.valid else []
    words += [f"{counts['holds']} hold", f"{counts['warning']} warn", f"{counts['not judged']} not judged"]
    return f"{'valid' if verdict.valid else 'invalid'}: {', '.join(words)}"


def render(run: Run, verdict: Verdict, console: Console) -> None:
    """The verdict first; then what is wrong, each with its reference; what holds; what was not judged."""
    style = "green" if verdict.valid else "red"
    console.print(Text(sentence(verdict), style=f"bold {style}"), highlight=False)
    console.print(Text(f"{run.name}  {run.path}", style="dim"), highlight=False, soft_wrap=True)
    for word in ("invalid", "warning"):
        for rule in verdict.with_word(word):
            console.print()
            _told(rule, console)
    console.print()
    _table(verdict.with_word("holds"), console)
    if unjudged := verdict.with_word("not judged"):
        console.print(Text("not judged", style="bold"), highlight=False)
        for why, ids in _by_reason(unjudged).items():
            line = Text(f"{', '.join(ids)}: ", style="dim")
            line.append(why)
            console.print(Padding(line, (0, 0, 0, 2)), highlight=False)


def _told(rule: Rule, console: Console) -> None:
    """One rule that trips: word, id, figure against bound; the sentence; where the bound is from."""
    head = Text(f"{rule.verdict}  ", style=f"bold {_STYLES[rule.verdict]}")
    head.append(rule.id, style="bold")
    if rule.figure is not None:
        head.append(f"  {_shown(rule, rule.figure)}", style="not bold")
        if rule.bound is not None:
            head.append(f", bound {_shown(rule, rule.bound)}", style="not bold")
    console.print(head, highlight=False)
    console.print(Padding(Text(rule.sentence), (0, 0, 0, 2)), highlight=False)
    expected = f"expected: {rule.title} ({rule.reference})"
    console.print(Padding(Text(expected, style="dim"), (0, 0, 0, 2)), highlight=False)


def _table(rules: tuple[Rule, ...], console: Console) -> None:
    table = bare_table("holds", "figure", "bound")
    table.add_column("found", overflow="fold")
    for rule in rules:
        figures = (_shown(rule, value) for value in (rule.figure, rule.bound))
        table.add_row(Text(rule.id, style=_STYLES[rule.verdict]), *figures, Text(rule.sentence))
    console.print(table, highlight=False)


def _by_reason(rules: tuple[Rule, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for rule in rules:
        ids = found.setdefault(rule.sentence, [])
        if rule.id not in ids:
            ids.append(rule.id)
    return found


def _shown(rule: Rule, value: float | None) -> str:
    if value is None:
        return ""
    if rule.unit in PREFIXED:
        return quantity(value, rule.unit)
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else number(value)


def _counts(verdict: Verdict) -> dict[str, int]:
    counted = Counter(rule.verdict for rule in verdict.rules)
    return {word: counted[word] for word in _STYLES}
