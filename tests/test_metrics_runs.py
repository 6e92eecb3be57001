"""The server's own counters against the run's records: the embedded server in each dialect, real llama.cpp.

The oracle is the client's side, which shares no code with the counters: the sums over
all records, warm-ups included, of the tokens that came with the successful replies.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from made_runs import failed, lattice, record, run_of
from rich.console import Console

from analysis.run import Run, load_run
from analysis.server_metrics import disagreements, load_over_time, token_deltas
from loadgen import clock, rundir
from loadgen.experiment import Order, execute
from loadgen.plan import build
from loadgen.progress import RunView
from loadgen.scenario import Scenario
from loadgen.server.tgi.routes import TgiRoutes
from loadgen.types import Record, ServerSample

DIALECTS = ("tgi", "vllm", "sglang", "llama.cpp")


def run(parent: Path, *, dialect: str = "tgi", interval_s: float | None = 0.25, **load: Any) -> Run:
    what = Scenario.model_validate(
        {
            "name": "m",
            "seed": 3,
            "server": {"dialect": dialect, "metrics_interval_s": interval_s},
            "load": {"warmup_requests": 3}
            | (load or {"pattern": "constant", "interval_s": 0.05, "requests": 120}),
            "power": {"baseline_s": 0.5},
        }
    )
    view = RunView(Console(stderr=True), 1, quiet=True)
    order = Order(what, "name: m\n", build(what), parent)
    return load_run(clock.run_virtual(execute(order, view)))


def sums(path: Path) -> tuple[float, float]:
    """(prompt, output) tokens of the records of successful requests, warm-ups too."""
    ok = [r for r in rundir.read_records(path) if r.status == "ok"]
    return sum(r.prompt_tokens or 0 for r in ok), sum(r.output_tokens or 0 for r in ok)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_counters_move_by_exactly_the_records_tokens(dialect: str, tmp_path: Path) -> None:
    made = run(tmp_path, dialect=dialect)
    assert (made.requests["status"] == "ok").all() and len(made.warmups) == 3
    samples = rundir.read_server_samples(made.path)
    prompt, output = sums(made.path)
    first, last = samples[0], samples[-1]
    # TGI shows a series from its first sample on: nothing had been counted before.
    assert (last.prompt_tokens or 0) - (first.prompt_tokens or 0) == prompt > 120 * 200
    assert (last.output_tokens or 0) - (first.output_tokens or 0) == output > 120
    assert first.t_s <= made.warmups["sent_s"].min() and last.t_s > made.requests["done_s"].max()
    assert [delta.agrees for delta in token_deltas(made)] == [True, True]
    assert disagreements(made) == []
    said = made.manifest["metrics"]
    assert (said["family"], said["failed"], said["skipped"], said["reason"]) == (dialect, 0, 0, None)
    assert said["samples"] == len(samples)
    gaps = np.diff([s.t_s for s in samples])
    assert gaps[:-1] == pytest.approx(0.25, abs=1e-5) and gaps[-1] <= 0.25
    for earlier, later in itertools.pairwise(samples):
        assert (later.output_tokens or 0) >= (earlier.output_tokens or 0)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_counters_agree_under_overload_and_what_waits_is_seen(dialect: str, tmp_path: Path) -> None:
    """150 at once: TGI refuses all but 128, llama.cpp runs 4 and lets 146 wait."""
    made = run(tmp_path, dialect=dialect, pattern="all_at_once", requests=150)
    t_s, running, waiting = load_over_time(made)
    busy = (t_s >= 0) & (t_s <= made.end_s)
    most = {"tgi": 128, "llama.cpp": 4}.get(dialect, 150)
    assert 0 < np.nanmax(running) <= most
    assert np.nanmax((running + waiting)[busy]) <= 150
    assert running[-1] == waiting[-1] == 0
    if dialect == "llama.cpp":
        assert np.nanmax(waiting) > 100 and (waiting[busy][1:5] > 0).all()
    if dialect == "tgi":
        assert (made.requests["status"] == "rejected").sum() == 150 - 128
    assert [delta.agrees for delta in token_deltas(made)] == [True, True]
    prompt, output = sums(made.path)
    assert [(d.server, d.records) for d in token_deltas(made)] == [(prompt, prompt), (output, output)]


def test_scraping_changes_no_record(tmp_path: Path) -> None:
    with_it = run(tmp_path / "a", interval_s=0.1)
    without = run(tmp_path / "b", interval_s=None)
    assert rundir.read_records(with_it.path) == rundir.read_records(without.path)
    assert len(with_it.metrics) > 60 and len(without.metrics) == 0
    assert without.manifest["metrics"] is None


def test_a_page_that_never_comes_delays_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = run(tmp_path / "a", interval_s=None)

    async def hang(self: TgiRoutes, request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(TgiRoutes, "metrics_page", hang)
    made = run(tmp_path / "b", interval_s=0.25)
    assert made.manifest["metrics"]["samples"] == 0 and made.manifest["metrics"]["failed"] > 20
    assert any("no answer in 0.225 s" in warning for warning in made.manifest["warnings"])
    for instant in ("sent_s", "first_s", "done_s"):
        assert made.requests[instant].to_numpy() == pytest.approx(without.requests[instant].to_numpy())


def test_a_server_without_metrics_is_a_note_and_no_warning(tmp_path: Path) -> None:
    made = run(tmp_path, dialect="transformers")
    assert (
        made.manifest["warnings"]
        == run(tmp_path, dialect="transformers", interval_s=None).manifest["warnings"]
    )
    assert made.manifest["metrics"]["samples"] == 0
    assert "HTTP 404" in made.manifest["metrics"]["reason"]
    assert [(d.server, d.agrees) for d in token_deltas(made)] == [(None, None)] * 2
    assert "HTTP 404" in str(token_deltas(made)[0].reason)


def counted(*samples: ServerSample, records: list[Record] | None = None, family: str | None = "vllm") -> Run:
    """Ten requests of 1,200 + 11 tokens, and the samples' counters; family None: a sidecar asked."""
    from dataclasses import replace

    import pandas as pd

    made = run_of(records or lattice(10, 1.0), metrics=family and {"family": family, "reason": None})
    fields = ("t_s", "running", "waiting", "prompt_tokens", "output_tokens")
    frame = pd.DataFrame({f: np.array([getattr(s, f) for s in samples], dtype=np.float64) for f in fields})
    return replace(made, metrics=frame)


def at(t_s: float, prompt: float | None, output: float | None) -> ServerSample:
    return ServerSample(t_s, 0, 0, prompt, output)


def test_somebody_else_s_tokens_are_named() -> None:
    made = counted(at(-1, 500, 50), at(5, 9000, 99), at(20, 12500 + 400, 160))
    prompt, output = token_deltas(made)
    assert (prompt.server, prompt.records, prompt.agrees) == (12400, 12000, False)
    assert prompt.excess == pytest.approx(400 / 12000)
    assert (output.server, output.records, output.agrees) == (110, 110, True)
    [line] = disagreements(made)
    assert "12400 prompt tokens" in line and "somebody else" in line


def test_one_percent_is_no_disagreement_and_fewer_tokens_are_one() -> None:
    assert disagreements(counted(at(-1, 0, 0), at(20, 12000 * 1.0099, 110))) == []
    [line] = disagreements(counted(at(-1, 0, 0), at(20, 11000, 110)))
    assert "answered elsewhere" in line


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "not collected"),
        ([at(0.5, 0, 0), at(20, 12000, 110)], "do not enclose"),
        ([at(-1, 0, 0), at(9.1, 12000, 110)], "do not enclose"),
        ([at(-1, None, None), at(20, None, None)], "does not tell"),
    ],
)
def test_what_cannot_be_compared_says_why(samples: list[ServerSample], reason: str) -> None:
    made = counted(*samples)
    for delta in token_deltas(made):
        assert delta.server is None and delta.agrees is None and reason in str(delta.reason)
    assert disagreements(made) == []


@pytest.mark.parametrize("middle", [at(5, 20, 20), at(5, None, None)])
def test_a_server_that_is_restarted_in_mid_run_is_a_warning_and_no_delta(middle: ServerSample) -> None:
    """TGI's counters are gone after a restart until its first request, and may overtake what they were."""
    made = counted(at(-1, 700, 700), middle, at(20, 12700, 810))
    assert [d.server for d in token_deltas(made)] == [None, None]
    assert [line.partition(":")[0] for line in disagreements(made)] == ["prompt tokens", "output tokens"]


@pytest.mark.parametrize("family", ["tgi", "sglang", None])
def test_a_counter_that_the_first_page_did_not_show_stood_at_0(family: str | None) -> None:
    """TGI's and SGLang's come with the first request; with a sidecar (None) the family is not known."""
    made = counted(at(-1, None, None), at(20, 12000, 110), family=family)
    assert [(d.server, d.agrees) for d in token_deltas(made)] == [(12000, True), (110, True)]


def test_the_probe_request_before_the_run_is_in_a_sidecar_s_samples_and_is_nobody_else_s() -> None:
    samples = at(-1, 0, 0), at(20, 12000 + 1200, 111)
    assert [d.agrees for d in token_deltas(counted(*samples, family=None))] == [True, True]
    assert [d.agrees for d in token_deltas(counted(*samples))] == [False, True]


def test_what_tgi_counts_is_known_when_a_sidecar_asked_it() -> None:
    records = [*lattice(9, 1.0), record(9, 9.0, output_tokens=1500)]
    prompt, _ = token_deltas(counted(at(-1, 0, 0), at(20, 14224, 1599), records=records, family=None))
    assert prompt.agrees is None and "repeatedly" in str(prompt.reason)


@pytest.mark.parametrize("family", ["vllm", "tgi"])
def test_a_failed_request_may_have_cost_the_server_as_much_as_the_longest(family: str) -> None:
    """Also TGI's output, though of successes only: the client may have gone just before the last token."""
    records = [*lattice(9, 1.0), failed(9, 9.0)]
    made = counted(at(-1, 0, 0), at(20, 12000, 110), records=records, family=family)
    assert [(d.records, d.allowed, d.agrees) for d in token_deltas(made)] == [
        (10800, 1200, True),
        (99, 11, True),
    ]


def test_records_without_the_server_s_count_are_not_compared() -> None:
    records = [*lattice(9, 1.0), record(9, 9.0, tokens_from="chunks")]
    for delta in token_deltas(counted(at(-1, 0, 0), at(20, 12000, 110), records=records)):
        assert delta.records is None and "server's count" in str(delta.reason)


def test_long_replies_of_tgi_are_prompts_again() -> None:
    records = [*lattice(9, 1.0), record(9, 9.0, output_tokens=1500)]
    prompt, output = token_deltas(counted(at(-1, 0, 0), at(20, 14224, 1599), records=records, family="tgi"))
    assert prompt.agrees is None and "repeatedly" in str(prompt.reason)
    assert output.agrees is True
