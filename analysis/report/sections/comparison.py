"""Two runs or more beside each other: what differs, by how much, and whether they may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from analysis.compare.table import systematic_sentence
from analysis.report.blocks import Banner, Block, Cell, Column, Picture, Points, Prose, Section, Table
from analysis.report.subject import side_by_side
from analysis.report.words import DASH, cell, difference, known, tagged

if TYPE_CHECKING:
    from analysis.compare.comparison import Comparison, Headline

_EVIDENCE = 1e-3


def comparison(found: Comparison, pictures: Sequence[Picture] = ()) -> list[Section]:
    """The sections on top of a page of several runs. The first side is the reference."""
    return [_conclusions(found), _headlines(found, pictures), _load(found), _listed(found)]


def _conclusions(found: Comparison) -> Section:
    broken = [f"{side.name}: {reason}" for side in found.sides for reason in side.reasons]
    said = (
        "All runs compared are valid."
        if found.valid
        else "Not every run compared is valid. Do not quote the comparison."
    )
    blocks: list[Block] = [Banner(found.valid, said, broken)]
    blocks.append(Points([one.conclusion for one in found.against], title="What it says"))
    notes = [f"{one.name}: {note}" for one in found.against for note in one.notes] + list(found.notes)
    if notes:
        blocks.append(Points(list(dict.fromkeys(notes)), title="What limits it"))
    return Section("verdict", "Verdict", blocks, f"Reference: {found.sides[0].name}.")


def _headlines(found: Comparison, pictures: Sequence[Picture]) -> Section:
    reference = found.sides[0].name
    blocks: list[Block] = []
    for i, one in enumerate(found.against):
        columns = (
            Column("Figure"),
            Column(reference, True),
            Column(one.name, True),
            Column("Difference", True),
            Column("Ratio", True),
            Column("p", True),
        )
        rows = [_headline(row, i) for row in found.headlines]
        blocks.append(Table(f"{one.name} against {reference}", columns, rows, _NOTE))
        blocks.append(Prose(f"Systematic, apart from the intervals: {systematic_sentence(one)}."))
    return Section("figures", "Figures compared", [*blocks, *side_by_side(pictures)])


_NOTE = (
    "In brackets: 95 % intervals. p: of no difference, by Holm's correction over all figures tested; at "
    "most 0.05 tells a difference from none."
)


def _headline(row: Headline, i: int) -> list[Cell]:
    """Side ``i + 1`` against the reference."""
    p = known(row.p_adjusted[i])
    told = "" if p is None else "told apart" if row.told(i) else "not told apart"
    sides = (cell(asdict(row.values[k])) for k in (0, i + 1))
    size = max((abs(e.value) for e in row.values if e.value is not None), default=0.0)
    change, ratio = difference(asdict(row.differences[i]), size), asdict(row.ratios[i])
    return [
        Cell(row.title.strip(), note=row.label),
        *sides,
        change,
        _times(ratio),
        Cell(_p(p), p, told),
    ]


def _times(ratio: Mapping[str, Any]) -> Cell:
    """A ratio stays a number: 1.02, not 102 %."""
    return cell({**ratio, "unit": ""}, 4)


def _p(p: float | None) -> str:
    if p is None:
        return DASH
    return f"< {_EVIDENCE:g}" if p < _EVIDENCE else f"{p:.3f}"


def _load(found: Comparison) -> Section:
    columns = (
        Column("Against the reference"),
        Column("Load"),
        Column("Requests"),
        Column("By what", wide=True),
    )
    rows = [
        [
            Cell(one.name),
            tagged(one.load.word),
            Cell("paired" if one.paired else "not paired", note=one.shared),
            Cell(" ".join(f"{sentence}." for sentence in one.load.verdict.sentences), note=one.load.shape),
        ]
        for one in found.against
    ]
    note = f"Equal: the interval of the ratio lies within {100 * found.tolerance:g} % of 1."
    return Section(
        "same-load", "Same load?", [Table("Load of each against the reference", columns, rows, note)]
    )


def _listed(found: Comparison) -> Section:
    if not found.listed:
        said = "Hardware, server, configuration and software are the same in all of them."
        return Section("differences", "What else differs", [Prose(said)])
    columns = (Column("Key"), Column("Of"), *(Column(side.name) for side in found.sides))
    rows = [[Cell(row.key), Cell(row.section), *(Cell(v) for v in row.values)] for row in found.listed]
    return Section("differences", "What else differs", [Table("Keys that are not the same", columns, rows)])
