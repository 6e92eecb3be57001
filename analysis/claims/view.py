"""A judged claim for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from analysis.claims.claim import Claim, parse_claim
from analysis.claims.judgement import Finding, Judgement
from analysis.claims.rules import judge
from analysis.console import bare_table, line
from analysis.words import J_PER_WH, quantity
from loadgen.terminal import print_json

_STYLES = {"impossible": "red", "conditional": "yellow", "doubtful": "yellow", "holds": "green"}


def report(words: Sequence[str], *, as_json: bool) -> bool:
    """Judges the claim of ``K=V`` words and prints the judgement on stdout; whether it is possible.

    Raises ConfigError for a claim that cannot be read.
    """
    judgement = judge(parse_claim(words))
    if as_json:
        print_json(as_object(judgement))
    else:
        render(judgement, Console())
    return judgement.possible


def as_object(judgement: Judgement) -> dict[str, Any]:
    """The claim with its defaults filled in, the verdict, and every rule's figures.

    Energies of a request in Wh, powers of a board in W: ``unit`` says which.
    ``impossible_beyond`` is where the rule rules the figure out, all of ``unless`` aside.
    """
    claim = judgement.claim
    cached = claim.cached_tokens
    return {
        "claim": {
            "gpu": claim.gpu.id,
            "gpus": claim.boards,
            "model": claim.model.id if claim.model is not None else None,
            "dtype": claim.dtype.name if claim.dtype is not None else None,
            "energy_wh": claim.energy_j / J_PER_WH,
            "spacing": claim.spacing,
            "interval_s": claim.interval_s,
            "prompt_tokens": claim.prompt_tokens,
            "output_tokens": claim.output_tokens,
            "cached_tokens": None if cached is None else {"least": cached.least, "most": cached.most},
            "max_in_flight": claim.max_in_flight,
            "speculation": claim.speculation,
        },
        "possible": judgement.possible,
        "verdict": judgement.verdict,
        "rules": [
            {
                "id": finding.rule,
                "status": finding.status,
                "unit": {"J": "Wh", "W": "W"}[finding.unit],
                "figure": _shown(finding, finding.figure),
                "bound": _shown(finding, finding.bound),
                "impossible_beyond": _shown(finding, finding.sure),
                "unless": list(finding.unless),
                "equation": finding.equation,
                "reference": finding.reference or None,
                "reason": finding.reason,
            }
            for finding in judgement.findings
        ],
    }


def render(judgement: Judgement, console: Console) -> None:
    """The claim, a table of the rules, each rule's reason with its source; the verdict first."""
    line(console, "verdict  ", judgement.verdict, "green" if judgement.possible else "red")
    line(console, "claim  ", _stated(judgement.claim))
    table = bare_table("rule", "word", "claimed", "bound", "impossible beyond", left=2)
    for finding in judgement.findings:
        figures = (finding.figure, finding.bound, finding.sure)
        word = Text(finding.status, style=_STYLES.get(finding.status, "dim"))
        table.add_row(finding.rule, word, *(_figure(finding, value) for value in figures))
    console.print(table, highlight=False)
    for finding in judgement.findings:
        line(console, f"{finding.rule}  ", finding.reason)
        source = f"; {finding.reference}" if finding.reference else ""
        console.print(
            Padding(Text(f"{finding.equation}{source}", style="dim"), (0, 0, 0, 2)), highlight=False
        )


def _stated(claim: Claim) -> str:
    words = [f"{quantity(claim.energy_j / J_PER_WH, 'Wh')} per request on {claim.boards} x {claim.gpu.id}"]
    if claim.interval_s is not None:
        words.append(f"one per {quantity(claim.interval_s, 's')} ({claim.spacing})")
    if claim.model is not None:
        words.append(claim.model.id + (f" in {claim.dtype.name}" if claim.dtype is not None else ""))
    if claim.prompt_tokens is not None:
        words.append(f"{claim.prompt_tokens:,.6g} prompt tokens")
    if claim.output_tokens is not None:
        words.append(f"{claim.output_tokens:,.6g} output tokens")
    return ", ".join(words)


def _shown(finding: Finding, value: float | None) -> float | None:
    """In the unit that is shown: Wh for energies."""
    if value is None:
        return None
    return value / J_PER_WH if finding.unit == "J" else value


def _figure(finding: Finding, value: float | None) -> str:
    return quantity(_shown(finding, value), "Wh" if finding.unit == "J" else "W")
