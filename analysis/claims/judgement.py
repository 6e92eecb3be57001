"""What the rules say of a claim, one finding a rule, and the verdict that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.claims.claim import Claim

Status = Literal["holds", "doubtful", "conditional", "impossible", "not judged"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's word on a claim. Energies are joules per request, powers watts per board.

    ``bound`` is the rule's nominal bound with nothing conceded. ``sure`` is what
    the figure must be below (above, for mean-power) to be ``impossible``;
    ``conditional`` is impossible unless one of ``unless`` is so. Both None where
    the rule was not judged. ``words`` is the rule's word in short ("below the FLOP
    floor unless prompts were cached"), ``detail`` the figures behind it.
    """

    rule: str
    status: Status
    unit: Literal["J", "W"]
    figure: float
    bound: float | None
    sure: float | None
    unless: tuple[str, ...]
    equation: str
    reference: str
    words: str
    detail: str

    @property
    def reason(self) -> str:
        return f"{self.words}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """``possible`` is the absence of an ``impossible`` finding; the others qualify it."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def possible(self) -> bool:
        return not self._with("impossible")

    def _with(self, *status: Status) -> list[Finding]:
        return [finding for finding in self.findings if finding.status in status]

    @property
    def verdict(self) -> str:
        """One sentence: what the figure is below, and what that hangs on."""
        if not self.possible:
            against = self._with("impossible", "conditional")
            return f"impossible: {'; '.join(finding.words for finding in against)}"
        if doubts := self._with("conditional", "doubtful"):
            return f"possible, but {'; '.join(finding.words for finding in doubts)}"
        judged = len(self.findings) - len(self._with("not judged"))
        return f"possible: within all {judged} bounds judged"
