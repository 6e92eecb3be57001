"""Can the run be believed: the verdict in words, what speaks against it, and every rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import Banner, Block, Cell, Column, Points, Prose, Section, Table
from analysis.report.subject import Subject
from analysis.report.words import plain, tagged

_COLUMNS = (
    Column("Rule"),
    Column("Verdict"),
    Column("What was found", wide=True),
    Column("Figure", numeric=True),
    Column("Bound", numeric=True),
)
_ORDER = ("invalid", "warning", "not judged", "holds")


def verdict(subject: Subject) -> Section:
    """The verdict, its reasons, its warnings."""
    summary, rules = subject.summary, subject.found["rules"]
    reasons, warnings = ([str(line) for line in summary[key]] for key in ("reasons", "warnings"))
    if not summary["valid"]:
        said = f"Invalid. Do not quote its figures: {_count(len(reasons), 'reason')}."
    elif warnings:
        said = f"Valid, to be read with {_count(len(warnings), 'warning')}."
    else:
        said = "Valid. No rule speaks against this run."
    blocks: list[Block] = [Banner(summary["valid"], said, reasons)]
    if warnings:
        blocks.append(Points(warnings, title="Warnings"))
    if rules:
        words = Counter(str(rule["verdict"]) for rule in rules)
        counts = ", ".join(f"{words[word]} {_SAID[word]}" for word in _ORDER if words[word])
        text = f"Of {len(rules)} rules {counts}."
        blocks.append(Prose(text, "quiet", ("Every rule with its figure and bound", "rules")))
    else:
        blocks.append(Prose("The rules and their bounds are in docs/lint.md.", "quiet"))
    return Section("verdict", "Verdict", blocks)


_SAID = {
    "invalid": "make it invalid",
    "warning": "warn",
    "not judged": "could not be judged",
    "holds": "hold",
}


def rules(subject: Subject) -> Section | None:
    """Every rule with its figure, bound and reference; None where the verdict has no such list."""
    found = subject.found["rules"]
    if not found:
        return None
    table = Table(f"The {len(found)} rules that this run was judged by", _COLUMNS, _rows(found))
    lead = "A rule that cannot be judged says what was lacking. It is no word for the run, nor against it."
    return Section("rules", "Every rule", [table], lead)


def _rows(rules: list[Mapping[str, Any]]) -> list[list[Cell]]:
    ordered = sorted(rules, key=lambda rule: _ORDER.index(rule["verdict"]))
    return [
        [
            Cell(str(rule["id"]), note=str(rule["title"])),
            tagged(str(rule["verdict"])),
            Cell(str(rule["sentence"]), note=str(rule["reference"] or "")),
            plain(rule["figure"], str(rule["unit"] or "")),
            plain(rule["bound"], str(rule["unit"] or "")),
        ]
        for rule in ordered
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
