"""How the figures came about, and what they cannot say: own words, the whole of it in docs/method.md."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.report.blocks import Points, Section
from analysis.report.subject import Subject

_ATTRIBUTION: Mapping[str, str] = {
    "work": (
        "Energy was attributed by work: of each step of the server, the idle power is split by the time "
        "that its requests took, the rest by the work that each caused (prompt tokens, output tokens, "
        "context)."
    ),
    "linear": "Energy was attributed by the tokens that each request had in each step, weighted.",
    "time": "Energy was attributed by time: requests in flight share the power of an instant equally.",
    "regression": "Energy was attributed by weights from a regression of power on the work of each slice.",
    "mean": "Every success was given the same part of the window's energy.",
    "marginal": "Idle power was left out; every success was given the same part of the rest.",
    "tokens": "Energy was attributed in proportion to tokens, whatever the batch.",
}


def method(subject: Subject) -> Section:
    found, summary = subject.found, subject.summary
    simulated = summary["clock"] == "virtual"
    items = [
        "Instants. Every arrival was planned before the run. Latency counts from sent (what the server did) "
        "and from due (what a user felt); failures enter no latency. See docs/method.md, Time.",
        "Energy. The window runs from the first due time to the last end. A counter's difference between "
        "its edges, or without one the integral of power, divided by successes; the energy of failures "
        "stays in the numerator. See docs/method.md, Energy.",
        f"{_ATTRIBUTION.get(str(found['options']['method']), 'Energy was attributed.')} All parts add up to "
        "the energy of the window. See docs/method.md, Attribution.",
        "Intervals. 95 %, from blocks of time that keep energy, requests and tokens together, sized by the "
        "measured autocorrelation; where the run is too short there is none, and the reason. They hold for "
        "this run alone: another day, another board and heat are not in them. See docs/method.md, Intervals.",
        "Labels. Measured: a counter or sensor of a real board, a clock, a count. Simulated: the embedded "
        "server and its board. Estimated: a constant or a formula. Figures of different labels are never "
        "added.",
    ]
    if simulated:
        items.append(
            "Virtual time. The real client talked to the embedded server in one process whose clock jumps "
            "over waiting: equal inputs give equal results, to the bit. See docs/server.md for the model."
        )
    return Section("method", "Method", [Points(items)])


def limits(subject: Subject) -> Section:
    summary = subject.summary
    labels = {
        str(summary["energy"][part]["label"]) for part in ("gpu", "cpu", "ram") if part in summary["energy"]
    }
    items = [
        "One run is one sample of the boards' thermal state. To compare two settings take at least five "
        "interleaved pairs of runs (loadgen compare).",
        "Only what was read is counted: network, storage, cooling and other hosts are not, unless a PUE was "
        "given.",
    ]
    if "measured" in labels:
        items.append(
            "A board's sensor may be off by its gain (±5 % on boards with published figures); no run can "
            "see it."
        )
    if "simulated" in labels:
        items.append(
            "Simulated joules and seconds follow from a model's constants. They are no measurement of any "
            "server; loadgen run --uncertainty N gives their range over those constants."
        )
    if "estimated" in labels:
        items.append("Estimated parts follow from constants: they cannot show an effect of the load.")
    if (summary.get("server") or {}).get("kind") not in ("embedded", "null", None):
        items.append("Model, board and number format of a remote server are as declared in the scenario.")
    return Section("limits", "Limits", [Points(items)])
