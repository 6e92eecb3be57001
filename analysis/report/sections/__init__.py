"""The sections of a run's report, in order. Each is a function of a `Subject` to a `Section`, or None.

A section that would have nothing to say is left out; one whose figures are missing says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from analysis.report.blocks import Section
from analysis.report.sections.energy import energy, uncertainty
from analysis.report.sections.headline import headline
from analysis.report.sections.latency import latency
from analysis.report.sections.load import load, requests
from analysis.report.sections.method import limits, method
from analysis.report.sections.rerun import data, rerun
from analysis.report.sections.service import service
from analysis.report.sections.setup import configuration, hardware
from analysis.report.sections.verdict import rules, verdict
from analysis.report.subject import Subject

Section_of = Callable[[Subject], Section | None]
SECTIONS: Mapping[str, Section_of] = {
    "verdict": verdict,
    "headline": headline,
    "energy": energy,
    "uncertainty": uncertainty,
    "load": load,
    "requests": requests,
    "latency": latency,
    "service": service,
    "rules": rules,
    "method": method,
    "limits": limits,
    "configuration": configuration,
    "hardware": hardware,
    "rerun": rerun,
    "data": data,
}


def sections(subject: Subject) -> list[Section]:
    """Every section that has something to say of the run."""
    made = (write(subject) for write in SECTIONS.values())
    return [section for section in made if section is not None]
