"""Faults on demand: who meets which, what it looks like on the wire, and what our own clients record."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen import clock
from loadgen.clients import make_client
from loadgen.errors import ConfigError
from loadgen.launch import Dialect, Faults, Launch, Launcher
from loadgen.runner import run_plan
from loadgen.scenario_file import load_scenario
from loadgen.server.app import DIALECTS
from loadgen.server.faults import BEFORE_FIRST_BYTE, KINDS, MEAN_WRITES, Kind, fault_of
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Arrival, Plan, Record, Request, Status

SEED = 7
EVERY = Faults(
    **{f"{kind}_rate": 0.1 for kind in KINDS},
    spike_s=3.0,
)
STATUS: dict[Kind | None, Status] = {
    None: "ok",
    "spike": "ok",
    "reset": "error",
    "stall": "timeout",
    "truncate": "error",
    "garble": "error",
    "http_429": "rejected",
    "http_424": "error",
    "http_500": "error",
}
TIMEOUT_S = 60.0


def kind_of(faults: Faults, id: int, seed: int = SEED) -> Kind | None:
    fault = fault_of(faults, seed, id)
    return None if fault is None else fault.kind


# The draw


def test_kinds_get_their_shares_and_strike_where_the_law_says() -> None:
    rates = dict(zip(KINDS, (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16), strict=True))
    faults = Faults(**{f"{kind}_rate": rate for kind, rate in rates.items()})
    n = 8_000
    drawn = [fault_of(faults, SEED, k) for k in range(n)]
    counts = Counter(None if fault is None else fault.kind for fault in drawn)
    for kind, rate in [*rates.items(), (None, 0.28)]:
        assert abs(counts[kind] - n * rate) < 4.5 * math.sqrt(n * rate * (1 - rate)), kind
    met = [fault for fault in drawn if fault is not None]
    m = len(met)
    early = sum(fault.after_writes == 0 for fault in met)
    p = BEFORE_FIRST_BYTE
    assert abs(early - m * p) < 4.5 * math.sqrt(m * p * (1 - p))
    # Geometric from 1: mean MEAN_WRITES, standard deviation sqrt(mean (mean - 1)).
    later = [fault.after_writes for fault in met if fault.after_writes]
    sigma = math.sqrt(MEAN_WRITES * (MEAN_WRITES - 1) / len(later))
    assert abs(sum(later) / len(later) - MEAN_WRITES) < 4.5 * sigma
    assert min(f.share for f in met) >= 0 and max(f.share for f in met) < 1
    assert abs(sum(f.share for f in met) / m - 0.5) < 4.5 / math.sqrt(12 * m)


def test_the_fault_of_a_request_is_a_function_of_seed_and_number_alone() -> None:
    numbers = [-5, -1, *range(300), 10**15]
    drawn = [fault_of(EVERY, SEED, k) for k in numbers]
    assert drawn == [fault_of(EVERY, SEED, k) for k in numbers]
    assert drawn != [fault_of(EVERY, SEED + 1, k) for k in numbers]
    # Raising a later kind's rate takes requests from those that had none.
    more = EVERY.model_copy(update={"http_500_rate": 0.3})
    for before, number in zip(drawn, numbers, strict=True):
        after = fault_of(more, SEED, number)
        assert after == before or (before is None and after is not None and after.kind == "http_500")


def test_without_rates_nobody_meets_a_fault() -> None:
    assert all(fault_of(Faults(), SEED, k) is None for k in range(1000))


def test_rates_beyond_the_whole_are_refused_with_their_names(tmp_path: Path) -> None:
    assert Faults(reset_rate=0.5, stall_rate=0.3, http_500_rate=0.2).http_500_rate == 0.2
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nload: {pattern: constant, interval_s: 1, requests: 2}\n"
        "server:\n  faults:\n    spike_rate: 0.5\n    garble_rate: 0.4\n    http_424_rate: 0.2\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_scenario(file)
    assert str(caught.value) == (
        f"{file}:7 server.faults.http_424_rate: expected rates that sum to at most 1 "
        "(spike_rate 0.5 + garble_rate 0.4 + http_424_rate 0.2), got 0.2"
    )


# What our own clients record


@dataclasses.dataclass
class Outcome:
    records: dict[int, Record]
    in_flight: int


def plan(due_s: list[float], *, ids: list[int] | None = None) -> Plan:
    arrivals = tuple(
        Arrival(t, t, Request(k, "text", {"prompt": f"Thank you, number {k}!", "max_new_tokens": 80}))
        for t, k in zip(due_s, ids or range(len(due_s)), strict=True)
    )
    return Plan(arrivals, None, "queue", 0)


async def load(what: Plan, faults: Faults, protocol: str, dialect: Dialect, streaming: bool) -> Outcome:
    # Without a prefix cache: what a broken request leaves in it would shift the others' prefills.
    launcher = Launcher(prefix_caching=False)
    service = Service(Launch(seed=SEED, dialect=dialect, faults=faults, launcher=launcher))
    records: list[Record] = []
    async with serving(service, address=None) as host:

        async def dial(factory: Callable[[], Any]) -> tuple[Any, Any]:
            near = factory()
            return clock.connect_memory(near, host.protocol())[0], near

        client = make_client(
            protocol,
            "http://embedded",
            model=service.limits.model_id,
            headers={},
            streaming=streaming,
            extra_body=None,
            dial=dial,
            exact_lengths=None,
        )
        async with client:
            await run_plan(what, client, zero_s=clock.now(), timeout_s=TIMEOUT_S, on_record=records.append)
            for _ in range(100):
                await asyncio.sleep(0.001)  # a disconnect reaches the server a turn or two later
                if not service.in_flight:
                    break
            outcome = Outcome({r.id: r for r in records}, service.in_flight)
    assert len(records) == len(outcome.records) == len(what.arrivals)
    return outcome


def run(
    what: Plan,
    faults: Faults = EVERY,
    protocol: str = "tgi",
    *,
    dialect: Dialect = "tgi",
    streaming: bool = True,
) -> Outcome:
    return clock.run_virtual(load(what, faults, protocol, dialect, streaming))


SPOKEN = [("tgi", "tgi"), ("tgi", "openai-completions"), *((d, "openai-chat") for d in sorted(DIALECTS))]


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("dialect", "protocol"), SPOKEN)
def test_each_request_ends_as_its_fault_demands_and_no_other_does(
    dialect: Dialect, protocol: str, streaming: bool
) -> None:
    n = 150
    what = plan([0.2 * k for k in range(n)])
    outcome = run(what, protocol=protocol, dialect=dialect, streaming=streaming)
    found = {id: record.status for id, record in outcome.records.items()}
    assert found == {id: STATUS[kind_of(EVERY, id)] for id in range(n)}
    assert {kind_of(EVERY, id) for id in range(n)} == {None, *KINDS}
    assert outcome.in_flight == 0


def test_the_causes_are_named_and_the_http_status_is_the_dialects() -> None:
    n = 150
    due_s = [0.2 * k for k in range(n)]
    streams = run(plan(due_s)).records
    wholes = run(plan(due_s), streaming=False).records
    said = {
        "http_429": (429, "Model is overloaded", "overloaded"),
        "http_424": (424, "Request failed during generation", "generation"),
        "http_500": (500, "Incomplete generation", "incomplete_generation"),
    }
    for id in range(n):
        kind = kind_of(EVERY, id)
        if kind in said:
            status, message, error_type = said[kind]
            for record, expected in ((streams[id], 200), (wholes[id], status)):
                assert record.http_status == expected
                assert message in str(record.error) and error_type in str(record.error)
        if kind == "reset":
            assert "connection reset by the server" in str(streams[id].error)
        if kind == "truncate":
            assert "connection closed by the server" in str(streams[id].error)
        fault = fault_of(EVERY, SEED, id)
        if fault is not None and kind in ("reset", "truncate"):
            assert (streams[id].http_status is None) == (fault.after_writes == 0)
    some = [streams[k] for k in range(n) if kind_of(EVERY, k) in ("reset", "truncate", "http_424")]
    assert any(record.first_s is not None for record in some), "some strike after tokens"
    assert any(record.first_s is None for record in some), "some strike before them"


def test_the_same_seed_meets_the_same_faults_in_any_order_of_arrival() -> None:
    n = 60
    due_s = [0.2 * k for k in range(n)]
    forward = run(plan(due_s))
    again = run(plan(due_s))
    backward = run(plan(due_s, ids=list(reversed(range(n)))))
    assert forward.records == again.records
    statuses = {id: record.status for id, record in forward.records.items()}
    assert statuses == {id: record.status for id, record in backward.records.items()}
    assert set(statuses.values()) > {"ok", "error"}


def times_of(record: Record) -> tuple[Any, ...]:
    return record.sent_s, record.first_s, record.done_s, record.chunk_s, record.chunk_tokens


def test_requests_without_a_fault_keep_their_figures() -> None:
    """Far enough apart that no request sees another's place in the batch, only the server's state."""
    n = 60
    what = plan([70.0 * k for k in range(n)])
    clean, faulty = run(what, Faults()).records, run(what).records
    assert {record.status for record in clean.values()} == {"ok"}
    untouched = [id for id in range(n) if kind_of(EVERY, id) is None]
    assert len(untouched) > 5
    for id in untouched:
        assert faulty[id] == clean[id]
    for id in (id for id in range(n) if kind_of(EVERY, id) == "spike"):
        shift_s = EVERY.spike_s
        assert faulty[id].first_s == pytest.approx(clean[id].first_s + shift_s, abs=1e-9)  # type: ignore[operator]
        assert faulty[id].done_s == pytest.approx(clean[id].done_s + shift_s, abs=1e-9)  # type: ignore[operator]


def test_a_garbled_reply_disturbs_nobody_else_even_in_one_batch() -> None:
    faults = Faults(garble_rate=0.3)
    what = plan([0.05 * k for k in range(60)])
    clean, faulty = run(what, Faults()).records, run(what, faults).records
    spoiled = {id for id in range(60) if kind_of(faults, id)}
    assert 8 < len(spoiled) < 30
    for id in range(60):
        if id in spoiled:
            assert faulty[id].status == "error" and faulty[id].http_status == 200
        else:
            assert faulty[id] == clean[id]


def test_a_refused_request_leaves_no_figures_and_no_place_behind() -> None:
    outcome = run(plan([0.0] * 200), Faults(http_429_rate=0.5, http_500_rate=0.5))
    assert {r.status for r in outcome.records.values()} == {"rejected", "error"}
    assert all(r.first_s is None and r.output_tokens is None for r in outcome.records.values())
    assert outcome.in_flight == 0


# Start and end


def test_a_slow_start_refuses_until_it_is_over() -> None:
    outcome = run(plan([float(k) + 0.5 for k in range(20)]), Faults(slow_start_s=10.0))
    for id, record in outcome.records.items():
        assert record.status == ("error" if id < 10 else "ok")
        if id < 10:
            assert "connection refused" in str(record.error)


def test_a_crash_resets_what_is_under_way_and_refuses_what_comes_later() -> None:
    due_s = [10.0 * k for k in range(5)] + [50.0] * 5 + [50.1, 60.0, 61.0]
    # Ids 0-4 end; 5-9 are under way when number 10, the eleventh request, ends the server.
    outcome = run(plan(due_s), Faults(crash_after_requests=10))
    records = outcome.records
    assert [records[k].status for k in range(5)] == ["ok"] * 5
    for k in range(5, 11):
        assert records[k].status == "error" and "connection reset" in str(records[k].error)
    for k in (11, 12):
        assert records[k].status == "error" and "connection refused" in str(records[k].error)
    assert records[5].done_s == pytest.approx(records[10].sent_s, abs=1e-6)
    assert outcome.in_flight == 0
