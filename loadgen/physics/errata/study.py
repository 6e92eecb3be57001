"""The report's model on its board, as the entries about it compute with it."""

from __future__ import annotations

from functools import cache

from loadgen.physics.boards import GPUS
from loadgen.physics.errata.erratum import Figure
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.physics.study import fitted
from loadgen.physics.study.closed import ClosedForms, closed_forms
from loadgen.physics.study.llm import EFFICIENCIES, Operation, Roofline, Scope

LLAMA = MODELS[fitted.MODEL]
H100 = GPUS[fitted.GPU]


@cache
def roofline(pair: str, scope: Scope = "dominant") -> Roofline:
    """The study's model and board in float32 at a pair of efficiencies."""
    return Roofline.of(LLAMA, H100, DTYPES[fitted.DTYPE], EFFICIENCIES[pair], scope)


def forms(pair: str, scope: Scope = "dominant") -> ClosedForms:
    """Its closed forms at batch 1."""
    return closed_forms(roofline(pair, scope))


def both(what: str, stated: float, name: str, unit: str) -> tuple[Figure, Figure]:
    """A coefficient of the closed forms at the appendix's pair, which is its own, and at the main one."""
    return (
        Figure(f"{what}, 0.7 / 0.28", stated, float(getattr(forms("appendix"), name)), unit),
        Figure(f"{what}, 0.675 / 0.443", stated, float(getattr(forms("main"), name)), unit),
    )


def operation(name: str, prompt_tokens: float, pair: str = "raw") -> Operation:
    """One operation of a prefill in full scope."""
    rows = roofline(pair, "full").prefill_operations(prompt_tokens)
    return next(row for row in rows if row.name == name)
