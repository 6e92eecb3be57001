"""Latency metrics: their definitions on records computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import failed, lattice, record, run_of

from analysis import latency
from analysis.energy import blocks_of


def test_definitions_on_one_record() -> None:
    one = record(
        0,
        2.0,
        demand_s=1.0,
        sent_s=2.5,
        first_s=3.0,
        done_s=5.0,
        chunk_s=(3.0, 3.5, 5.0),
        chunk_tokens=(1, 2, 2),
        output_tokens=5,
    )
    got = {name: sample.value_s.tolist() for name, sample in latency.samples(run_of([one])).items()}
    assert got == {
        "ttft": [0.5],
        "ttft_from_due": [1.0],
        "ttft_from_demand": [2.0],
        "tpot": [0.5],  # (2.5 - 0.5) / (5 - 1)
        "itl": [0.5, 1.5],
        "e2e": [2.5],
        "e2e_from_due": [3.0],
        "e2e_from_demand": [4.0],
    }
    assert latency.tokens_per_chunk(run_of([one])) == pytest.approx(5 / 3)


@pytest.mark.parametrize("status", ["error", "timeout", "rejected", "cancelled", "dropped"])
def test_no_failed_request_enters_a_latency_even_with_all_its_stamps(status: str) -> None:
    slow = record(1, 1.0, done_s=900.0, first_s=800.0, status=status, error="broken stream")
    samples = latency.samples(run_of([record(0, 0.0), slow]))
    assert all(len(s.value_s) == (10 if name == "itl" else 1) for name, s in samples.items())
    assert max(float(s.value_s.max()) for s in samples.values()) < 1.0


def test_a_reply_of_one_token_or_of_unknown_length_has_no_tpot() -> None:
    short = record(0, 0.0, output_tokens=1, chunk_s=(0.1,), chunk_tokens=(1,))
    unknown = record(1, 1.0, output_tokens=None, tokens_from=None)
    samples = latency.samples(run_of([short, unknown]))
    assert len(samples["tpot"].value_s) == 0
    assert len(samples["e2e"].value_s) == 2


def test_gaps_never_span_two_requests() -> None:
    samples = latency.samples(run_of(lattice(20, 5.0)))
    assert len(samples["itl"].value_s) == 200
    np.testing.assert_allclose(samples["itl"].value_s, 0.01)


def test_lateness_counts_everything_sent_and_nothing_in_a_closed_loop() -> None:
    rows = [
        record(0, 0.0, sent_s=0.002),
        failed(1, 1.0, sent_s=1.004),
        failed(2, 2.0, "dropped", sent_s=None),
    ]
    assert latency.lateness_s(run_of(rows)).tolist() == pytest.approx([0.002, 0.004])
    assert len(latency.lateness_s(run_of(rows, closed_loop=True))) == 0


def test_statistics_of_a_ramp_of_latencies() -> None:
    rows = [record(i, float(i), done_s=i + 0.001 * (i + 100)) for i in range(1001)]
    run = run_of(rows)
    found = latency.summarize_sample(latency.samples(run)["e2e"], blocks_of(run))
    assert found["p50"].value == pytest.approx(0.6)
    assert found["p99"].value == pytest.approx(1.09)
    assert found["mean"].value == pytest.approx(0.6)
    assert found["mean"].n == 1001
    # latencies that only ever rise are no sample of anything: values, but no intervals
    assert found["mean"].low is None
    assert "effective sample too small" in found["mean"].method


def test_nothing_successful_gives_reasons_not_numbers() -> None:
    run = run_of([failed(0, 0.0)])
    found = latency.summarize_sample(latency.samples(run)["ttft"], blocks_of(run))
    assert {e.value for e in found.values()} == {None}
    assert latency.tokens_per_chunk(run) is None
