"""What the sections of a report are written from: a study as plain values, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.report.blocks import Block, Picture, Pictures

if TYPE_CHECKING:
    from analysis.study import Study

PARTS = ("gpu", "cpu", "ram")
PART_NAMES = {"gpu": "GPU", "cpu": "CPU", "ram": "RAM"}


@dataclass(frozen=True, slots=True)
class Subject:
    """``found``: `analysis.study.as_object`; ``manifest``: run.json.

    ``pictures``: by where they stand (``parts``, ``energy``, ``load``, ``latency``), in the order of showing.
    """

    found: Mapping[str, Any]
    manifest: Mapping[str, Any]
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)

    @property
    def summary(self) -> Mapping[str, Any]:
        summary: Mapping[str, Any] = self.found["summary"]
        return summary

    @property
    def name(self) -> str:
        return str(self.summary["name"])

    @property
    def gpu(self) -> Mapping[str, Any] | None:
        """The boards' row of the summary; None when no part was read."""
        found: Mapping[str, Any] | None = self.summary["energy"].get("gpu")
        return found

    @property
    def energy_reason(self) -> str:
        """Why the boards' energy is not known."""
        return str(self.summary["energy"]["reason"] or "no board was read")


def subject_of(study: Study, pictures: Mapping[str, Sequence[Picture]]) -> Subject:
    """A study, ready to be written about."""
    from analysis.study import as_object

    return Subject(as_object(study), study.run.manifest, pictures)


def side_by_side(found: Sequence[Picture]) -> list[Block]:
    """A block of the pictures, none without any."""
    return [Pictures(found)] if found else []
