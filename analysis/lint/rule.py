"""What a rule is, and what it says of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Word = Literal["invalid", "warning", "holds", "not judged"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule's word on one run, or on one thing in it (a sidecar, a board).

    ``id`` is stable; it comes more than once where a rule trips over several things.
    ``figure`` and ``bound`` are in ``unit`` (``1``: a share or a ratio), None where there
    is no number to compare. ``sentence`` says what was found, or why it was not judged;
    ``reference`` where the bound is from.
    """

    id: str
    verdict: Word
    title: str
    figure: float | None
    bound: float | None
    unit: str
    sentence: str
    reference: str


@dataclass(frozen=True, slots=True)
class Check:
    """A rule before it is put to a run. ``title``: what must be so."""

    id: str
    title: str
    unit: str
    reference: str

    def says(
        self, verdict: Word, sentence: str, figure: float | None = None, bound: float | None = None
    ) -> Rule:
        """Numbers that are not finite are no figures."""
        return Rule(
            self.id, verdict, self.title, _finite(figure), _finite(bound), self.unit, sentence, self.reference
        )

    def invalid(self, sentence: str, figure: float | None = None, bound: float | None = None) -> Rule:
        return self.says("invalid", sentence, figure, bound)

    def warns(self, sentence: str, figure: float | None = None, bound: float | None = None) -> Rule:
        return self.says("warning", sentence, figure, bound)

    def holds(self, sentence: str, figure: float | None = None, bound: float | None = None) -> Rule:
        return self.says("holds", sentence, figure, bound)

    def not_judged(self, why: str) -> Rule:
        return self.says("not judged", why)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every rule's word, in the order of the catalogue; each rule has at least one."""

    rules: tuple[Rule, ...]

    def with_word(self, word: Word) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.verdict == word)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the run is invalid; empty when it is valid."""
        return tuple(rule.sentence for rule in self.with_word("invalid"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to read the figures with; they do not invalidate."""
        return tuple(dict.fromkeys(rule.sentence for rule in self.with_word("warning")))

    @property
    def valid(self) -> bool:
        return not self.reasons


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
