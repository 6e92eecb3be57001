"""The few figures that a run is quoted by, each with its label, interval and what it is per."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import Block, Card, Cards, Prose, Section
from analysis.report.subject import Subject
from analysis.report.words import DASH, card, count, figure, known, value_of

_CLOCKED = {"virtual": "simulated", "real": "measured"}


def headline(subject: Subject) -> Section:
    summary = subject.summary
    per = summary["energy"]["denominators"]
    timed = _CLOCKED.get(str(summary["clock"]), "measured")
    rate, requests = summary["rate"], summary["requests"]
    items = [
        *_energy(subject, per),
        _latency("Time to first token, median", summary["latency"]["ttft_s"], "p50", timed),
        _latency("Time to first token, p99", summary["latency"]["ttft_s"], "p99", timed),
        card(
            "Rate achieved",
            rate["achieved_rps"],
            timed,
            f"{count(requests['ok'])} successes in {figure(summary['window_s'], 's', 4)}; {_offered(rate)}",
        ),
        card(
            "Success ratio",
            requests["success_ratio"],
            timed,
            f"{count(requests['ok'])} of {count(requests['records'])} records, {count(requests['planned'])} "
            "planned",
        ),
    ]
    blocks: list[Block] = [Cards(items)]
    if summary["blocks"]["reason"] is not None:
        blocks.append(Prose(f"No 95 % intervals: {summary['blocks']['reason']}.", "warn"))
    return Section("headline", "Headline", blocks)


def _energy(subject: Subject, per: Mapping[str, int]) -> list[Card]:
    gpu, found = subject.gpu, subject.found
    if gpu is None:
        reason = subject.energy_reason
        return [
            Card(f"GPU energy per {what}", DASH, "", f"Unavailable: {reason}", "unavailable", "warn", "")
            for what in ("request", "output token")
        ]
    label = str(gpu["label"])
    items = [
        card(
            "GPU energy per request",
            gpu["energy_per_request_wh"],
            label,
            f"the window's energy over {count(per['request'])} successes",
            second=gpu["energy_per_request"],
        ),
        card(
            "GPU energy per output token",
            gpu["energy_per_output_token"],
            label,
            f"the window's energy over {count(per['output_token'])} tokens of successes",
            second=gpu["energy_per_output_token_wh"],
        ),
    ]
    window, part = found["window"], found["parts"].get("gpu")
    if window is not None and part is not None and not _whole(subject, window):
        over = f"{figure(part['start_s'], 's', 4)} to {figure(part['end_s'], 's', 4)}"
        items.insert(
            1,
            card(
                "GPU energy per request, chosen window",
                part["per_success_j"],
                label,
                f"{over}, over {count(part['succeeded'])} successes that ended in it",
            ),
        )
    return items


def _whole(subject: Subject, window: Mapping[str, Any]) -> bool:
    return bool(window["start_s"] == 0.0 and window["end_s"] == subject.summary["window_s"])


def _latency(title: str, row: Mapping[str, Any], key: str, label: str) -> Card:
    return card(title, row[key], label, f"sent to first token, {count(row['n'])} successes")


def _offered(rate: Mapping[str, Any]) -> str:
    if known(rate["offered_rps"]["value"]) is None:
        return "a closed loop, or one burst: no offered rate"
    return f"offered {value_of(rate['offered_rps'])}"
