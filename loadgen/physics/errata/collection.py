"""All entries, in the order of their ids."""

from __future__ import annotations

from loadgen.physics.errata import benchmark, decode, energy, facts, paper, prefill, serving, thresholds
from loadgen.physics.errata.erratum import Erratum, proofread


def all_errata() -> tuple[Erratum, ...]:
    """A1 to A36, B1 to B23, F1 to F12, N1 to N8, proofread. Raises ErrataError (see ``proofread``)."""
    parts = (prefill, decode, energy, serving, paper, thresholds, benchmark, facts)
    entries = [entry for part in parts for entry in part.entries()]
    return proofread(sorted([*entries, *facts.unchecked()], key=lambda e: (e.id[0], int(e.id[1:]))))
