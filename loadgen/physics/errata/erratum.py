"""One statement of a document, the numbers that check it, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from loadgen.errors import LoadgenError

Document = Literal["report", "paper"]
Verdict = Literal[
    "reproduces",
    "approximate",
    "explained",
    "typo",
    "wording",
    "ambiguous",
    "inconsistent",
    "wrong",
    "not physical",
    "not reproduced",
    "not checkable",
]
Relation = Literal["=", "<=", ">="]
Role = Literal["check", "cause", "beside"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MEANING: Mapping[Verdict, str] = {
    "reproduces": "within the tolerance",
    "approximate": "right in kind, off by more than its wording allows",
    "explained": "not what the model gives, but its origin is known and gives it",
    "typo": "a misprint: what was meant is clear",
    "wording": "the numbers are right, the sentence is not",
    "ambiguous": "can be read in ways that differ in their result",
    "inconsistent": "contradicts another statement or table of the same document",
    "wrong": "contradicts the formula, the hardware or the software it speaks of",
    "not physical": "below or above what the hardware can do",
    "not reproduced": "the formula given for it gives another number",
    "not checkable": "nothing in the documents to compute it from",
}

DIGITS = 5e-3
"""Tolerance of a figure given in digits."""
ROUND = 5e-2
"""Tolerance of a figure that the text rounds ("about", "nearly")."""
ORDER = 9.0
"""Tolerance of an order of magnitude: a factor of 10."""


class ErrataError(LoadgenError):
    """An entry says one thing and its numbers another."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A stated number and the computed one, in the same ``unit`` ("" for none).

    ``stated relation given`` is what the document claims; ``tolerance`` is
    relative, of the larger over the smaller, and for an inequality the margin
    by which it may be missed. ``role``: a ``check`` decides the verdict; a
    ``cause`` is a formula that would explain the stated number and must give
    it; what is ``beside`` is only shown. ``fault`` is the verdict on this
    figure if it fails, None for the entry's. ``source`` where ``given`` is no
    computation but somebody's measurement.
    """

    what: str
    stated: float
    given: float
    unit: str = ""
    tolerance: float = DIGITS
    relation: Relation = "="
    role: Role = "check"
    fault: Verdict | None = None
    source: str = ""

    @property
    def ratio(self) -> float | None:
        """given / stated; None for a stated 0."""
        return None if self.stated == 0 else self.given / self.stated

    @property
    def holds(self) -> bool:
        """Whether ``stated relation given`` within the tolerance."""
        most = 1.0 + self.tolerance
        if self.relation == "<=":
            return self.stated <= self.given * most
        if self.relation == ">=":
            return self.stated * most >= self.given
        if self.stated * self.given <= 0:
            return self.stated == self.given
        return max(self.stated / self.given, self.given / self.stated) <= most


@dataclass(frozen=True, slots=True)
class Erratum:
    """An entry: what ``document`` says at ``where``, the figures, and why they differ.

    ``stated`` is the statement in this project's words. ``fault`` is what the
    statement is if a check fails, or, without any check, by reading; None for
    an entry whose checks must hold. ``section`` groups entries.
    """

    id: str
    document: Document
    section: str
    where: str
    stated: str
    figures: tuple[Figure, ...] = ()
    fault: Verdict | None = None
    cause: str = ""

    @property
    def checks(self) -> tuple[Figure, ...]:
        """The figures that decide."""
        return tuple(figure for figure in self.figures if figure.role == "check")

    @property
    def read(self) -> bool:
        """Whether the verdict is by reading: no number decides it."""
        return not self.checks

    @property
    def verdict(self) -> Verdict:
        """``reproduces`` if every check holds, else the fault ("not reproduced" if none is named)."""
        if self.checks and all(figure.holds for figure in self.checks):
            return "reproduces"
        return self.fault or "not reproduced"

    def verdict_on(self, figure: Figure) -> str:
        """The verdict on one figure; ``explains it`` for a cause, empty for what is beside."""
        if figure.role == "beside":
            return ""
        if figure.role == "cause":
            return "explains it" if figure.holds else "does not explain it"
        return "reproduces" if figure.holds else figure.fault or self.fault or "not reproduced"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the verdicts."""
        found = asdict(self)
        found["figures"] = [
            asdict(figure) | {"ratio": figure.ratio, "verdict": self.verdict_on(figure)}
            for figure in self.figures
        ]
        return found | {"verdict": self.verdict, "decided": "by reading" if self.read else "by numbers"}


def proofread(errata: Iterable[Erratum]) -> tuple[Erratum, ...]:
    """The entries, each of which says what its numbers say.

    Raises ErrataError for an entry without fault whose checks fail, one with a
    fault whose checks all hold, a cause that does not give the stated number, a
    number that is not finite, and an id that comes twice.
    """
    found = tuple(errata)
    seen: set[str] = set()
    for entry in found:
        if entry.id in seen:
            raise ErrataError(f"{entry.id}: comes twice, expected each id once")
        seen.add(entry.id)
        _proofread(entry)
    return found


def _proofread(entry: Erratum) -> None:
    for figure in entry.figures:
        what = f"{entry.id}: {figure.what}"
        numbers = f"stated {figure.stated:g} {figure.unit}, computed {figure.given:g}"
        if not abs(figure.given) < float("inf"):
            raise ErrataError(f"{what}: expected a finite number, got {figure.given:g}")
        if figure.role == "cause" and not figure.holds:
            raise ErrataError(f"{what}: does not explain what it should: {numbers}")
        if figure.role == "check" and entry.fault is None and not figure.holds:
            raise ErrataError(f"{what}: expected to reproduce within {figure.tolerance:g}, {numbers}")
    if entry.fault is None and entry.read:
        raise ErrataError(f"{entry.id}: expected a check or a verdict by reading, got neither")
    if entry.fault is not None and entry.verdict == "reproduces":
        raise ErrataError(f"{entry.id}: said to be {entry.fault}, but every check holds")
