"""docs/errata.md: the entries as tables, by document and section, and the same numbers for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from loadgen.physics.errata.digits import number, quantity
from loadgen.physics.errata.erratum import MEANING, VERDICTS, Document, Erratum, Figure, Verdict

TITLES: dict[Document, str] = {
    "report": 'The report: "Latency and Energy Optimization for Generative AI Models"',
    "paper": 'The paper: "Video Killed the Energy Budget"',
}
SIGNS = {"=": "=", "<=": "≤", ">=": "≥"}
COMMAND = "loadgen theory errata --markdown > docs/errata.md"

_INTRO = f"""# What the two documents state, and what follows from their formulas

Written by `{COMMAND}`; a test holds this file to the code, so change the code
(`loadgen/physics/errata`), not this file. `loadgen theory errata --json` has every digit.

Every line is a claim "stated = computed" (or ≤, ≥). Left is the printed number, or what a printed formula
gives where the formula is what is checked. The right number is computed by the functions of
[theory.md](theory.md) each time, except where a footnote names whose measurement it is. Tolerances: 0.5 % of
a figure given in digits, 5 to 10 % of a rounded one, a factor of 10 of an order of magnitude; the JSON has
each. A verdict is decided by the numbers; *by reading* where there are none. Lines without a sign stand
beside for comparison; "explains it" marks a formula that would give the stated number. A: the report, B: the
paper, F: other statements of both, N: what cannot be checked.
"""


def grouped(errata: Iterable[Erratum]) -> dict[tuple[Document, str], list[Erratum]]:
    """The entries by document and section, the report first."""
    found: dict[tuple[Document, str], list[Erratum]] = {}
    for entry in sorted(errata, key=lambda e: e.document != "report"):
        found.setdefault((entry.document, entry.section), []).append(entry)
    return found


def verdict_counts(errata: Iterable[Erratum]) -> dict[Verdict, int]:
    """Entries by verdict, in the order of the verdicts; none that does not occur."""
    counts = Counter(entry.verdict for entry in errata)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def markdown(errata: Sequence[Erratum]) -> str:
    """The whole file."""
    blocks = [_INTRO, _legend(errata)]
    document = ""
    for (of, section), entries in grouped(errata).items():
        if of != document:
            blocks.append(f"## {TITLES[of]}\n")
            document = of
        blocks.append(f"### {section[0].upper()}{section[1:]}\n")
        blocks.append(_table(entries) if any(e.figures for e in entries) else _plain(entries))
    return "\n".join(blocks)


def _legend(errata: Sequence[Erratum]) -> str:
    rows = [f"| {verdict} | {n} | {MEANING[verdict]} |" for verdict, n in verdict_counts(errata).items()]
    return "\n".join(["| verdict | entries | meaning |", "|---|--:|---|", *rows, ""])


def _table(entries: Iterable[Erratum]) -> str:
    rows = ["| | claim | stated | | computed | ratio | verdict |", "|---|---|--:|:-:|--:|--:|---|"]
    notes: list[str] = []
    sources: list[str] = []
    for entry in entries:
        read = ", *by reading*" if entry.read else ""
        rows.append(
            f"| **{entry.id}** | {entry.stated} ({entry.where}) | | | | | **{entry.verdict}**{read} |"
        )
        for figure in entry.figures:
            if figure.source and figure.source not in sources:
                sources.append(figure.source)
            mark = f" [{sources.index(figure.source) + 1}]" if figure.source else ""
            rows.append(_row(entry, figure, mark))
        if entry.cause:
            notes.append(f"- **{entry.id}** {entry.cause}")
    foot = [f"[{i}] {source}" for i, source in enumerate(sources, 1)]
    return "\n".join(
        [*rows, "", *notes, *([""] if notes else []), *(["; ".join(foot) + ".", ""] if foot else [])]
    )


def _row(entry: Erratum, figure: Figure, mark: str) -> str:
    sign = "" if figure.role == "beside" else SIGNS[figure.relation]
    cells = (
        "",
        figure.what + mark,
        quantity(figure.stated, figure.unit),
        sign,
        quantity(figure.given, figure.unit),
        "" if figure.ratio is None else number(figure.ratio),
        entry.verdict_on(figure),
    )
    return "| " + " | ".join(cells) + " |"


def _plain(entries: Iterable[Erratum]) -> str:
    lines = [f"- **{e.id}** {e.stated} ({e.where}). {e.cause}" for e in entries]
    return "\n".join([*lines, ""])
