"""Servers' metric pages to samples, and the loop that collects them, on the virtual clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loadgen import clock
from loadgen.errors import ConfigError
from loadgen.metrics.families import (
    FAMILIES,
    LLAMA_CPP,
    SGLANG,
    TGI,
    VLLM,
    PageError,
    family_of,
    samples,
    server_sample,
)
from loadgen.metrics.scrape import Scraped, metrics_url, scrape
from loadgen.power.exported import NAMES
from loadgen.types import ServerSample

VLLM_PAGE = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9123.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" {c} # d\\\\"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"b\\" {c} # d\\\\"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 77.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.234567e+06
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 250.0 1700000000123
vllm:prefix_cache_hits_total{engine="0",model_name="m"} NaN
vllm:num_preemptions_total{engine="0",model_name="m"} +Inf
"""


def test_vllm_s_engines_add_up_and_neighbouring_names_are_not_taken() -> None:
    assert family_of(VLLM_PAGE) is VLLM
    assert server_sample(VLLM_PAGE, VLLM, 5.0) == ServerSample(
        5.0, running=7, waiting=0, prompt_tokens=1234567, output_tokens=250
    )


def test_tgi_shows_a_series_only_after_its_first_sample_and_absence_is_not_zero() -> None:
    page = b"# TYPE tgi_batch_max_total_tokens gauge\ntgi_batch_max_total_tokens 9000\n"
    assert family_of(page) is TGI
    assert server_sample(page, TGI, 1.0) == ServerSample(1.0)
    page += b"tgi_queue_size 2\ntgi_request_input_length_sum 30\ntgi_request_input_length_count 3\n"
    page += b'tgi_request_generated_tokens_bucket{le="+Inf"} 3\ntgi_request_generated_tokens_sum 41\n'
    assert server_sample(page, TGI, 1.0) == ServerSample(1.0, waiting=2, prompt_tokens=30, output_tokens=41)


def test_a_page_that_ends_in_mid_number_gives_no_smaller_number() -> None:
    assert server_sample(b"tgi_queue_size 2\ntgi_request_input_length_sum 30", TGI, 1.0) == ServerSample(
        1.0, waiting=2
    )


def test_sglang_s_ranks_repeat_one_count_and_its_data_parallel_engines_add_up() -> None:
    rows = [
        'sglang:num_running_reqs{dp_rank="0",tp_rank="0",model_name="m"} 5.0',
        'sglang:num_running_reqs{dp_rank="0",tp_rank="1",model_name="m"} 5.0',
        'sglang:num_running_reqs{dp_rank="1",tp_rank="2",model_name="m"} 2.0',
        'sglang:num_queue_reqs{tp_rank="0",priority=""} 6.0',
        'sglang:num_queue_reqs{tp_rank="0",priority="1"} 4.0',
        'sglang:num_queue_reqs{tp_rank="0",priority="2"} 2.0',
        'sglang:prompt_tokens_total{is_streaming="true"} 100.0',
        'sglang:prompt_tokens_total{is_streaming="false"} 11.0',
        'sglang:cached_tokens_total{cache_source="device"} 7.0',
        'sglang:cached_tokens_total{cache_source="host"} 3.0',
        'sglang:num_retracted_reqs{tp_rank="0"} 9.0',  # of the last batch, not a total
    ]
    page = "\n".join(rows).encode() + b"\n"
    assert family_of(page) is SGLANG
    assert server_sample(page, SGLANG, 0.0) == ServerSample(
        0.0, running=7, waiting=6, prompt_tokens=111, cached_tokens=10
    )


def test_llama_cpp_s_prompt_tokens_are_evaluated_and_cached_ones() -> None:
    page = (
        b"llamacpp:prompt_tokens_total 90\nllamacpp:tokens_predicted_total 40\nllamacpp:requests_deferred 1\n"
    )
    assert family_of(page) is LLAMA_CPP
    assert server_sample(page, LLAMA_CPP, 0.0) == ServerSample(
        0.0, waiting=1, prompt_tokens=90, output_tokens=40
    )
    page += b"llamacpp:prompt_tokens_cached_total 10\n"
    sample = server_sample(page, LLAMA_CPP, 0.0)
    assert (sample.prompt_tokens, sample.cached_tokens) == (100, 10)


@pytest.mark.parametrize("page", [b"", b"python_info 1\n", b'x{y="\nvllm"} 1\n', b"my_tgi_queue_size 3\n"])
def test_an_unknown_page_belongs_to_nobody(page: bytes) -> None:
    assert family_of(page) is None


@pytest.mark.parametrize("line", [b"tgi_queue_size ", b'tgi_queue_size{a="b} 1', b"tgi_queue_size many"])
def test_a_garbled_line_is_an_error_and_one_elsewhere_is_not(line: bytes) -> None:
    with pytest.raises(PageError):
        server_sample(line + b"\n", TGI, 0.0)
    other = line.replace(b"tgi_queue_size", b"tgi_other")
    assert server_sample(other + b"\ntgi_queue_size 1\n", TGI, 0.0).waiting == 1


def test_the_page_on_metrics_names_every_series_that_is_read() -> None:
    told = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text()
    names = {name for family in FAMILIES for several in family.names.values() for name in several}
    assert len(names | set(NAMES)) == 4 + 6 + 6 + 5 + 8
    assert not [name for name in names | set(NAMES) if f"`{name}" not in told]


def test_an_openmetrics_page_with_exemplars_reads_the_same() -> None:
    page = b'a_total{x="1"} 17.0 1520879607.789 # {trace_id="4 # {b}"} 0.43 1520879607.7\na_totals 3\n# EOF\n'
    [row] = samples(page, ("a_total",))["a_total"]
    assert (row.value, row.labels) == (17.0, {"x": "1"})


def test_a_page_of_500_lines_is_read_within_a_millisecond() -> None:
    """The loop that sends requests waits meanwhile. 0.2 ms on the machine this was written on."""
    page = VLLM_PAGE + b"".join(
        b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="%d",model_name="m"} %d.0\n' % (i, i)
        for i in range(500)
    )

    def once() -> float:
        before_s = time.perf_counter()
        server_sample(page, VLLM, 0.0)
        return time.perf_counter() - before_s

    assert min(once() for _ in range(50)) < 1e-3


def test_a_page_of_nothing_but_its_series_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(PageError, match="20000 series of tgi_batch_current_size"):
        server_sample(b"tgi_queue_size 1\n" * 20_000, TGI, 0.0)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1", "http://h:1/metrics"),
        ("http://h:1/v1/", "http://h:1/metrics"),
        ("http://u:p@h/v1?x=1", "http://u:p@h/metrics"),
        ("https://h/tgi", "https://h/tgi/metrics"),
    ],
)
def test_the_page_is_at_the_server_s_root(base: str, url: str) -> None:
    assert metrics_url(base) == url


class Server(asyncio.Protocol):
    """Answers each request by ``answer()``: (delay in s, status, body), or None: never."""

    def __init__(self, answer: Callable[[], tuple[float, int, bytes] | None], log: Log) -> None:
        self._answer, self._log = answer, log

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._log.connections += 1

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"GET /metrics HTTP/1.1\r\n"), data
        self._log.asked_s.append(clock.now())
        self._log.heads.append(data)
        told = self._answer()
        if told is not None:
            delay_s, status, body = told
            head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            asyncio.get_running_loop().call_later(delay_s, self._transport.write, head + body)


class Log:
    def __init__(self) -> None:
        self.connections = 0
        self.asked_s: list[float] = []
        self.heads: list[bytes] = []


def collect(
    answer: Callable[[], tuple[float, int, bytes] | None],
    *,
    interval_s: float = 0.5,
    for_s: float = 2.1,
    headers: dict[str, str] | None = None,
) -> tuple[Scraped, list[ServerSample], Log]:
    async def main() -> tuple[Scraped, list[ServerSample], Log]:
        log, found, stop = Log(), list[ServerSample](), asyncio.Event()

        async def dial(
            factory: Callable[[], asyncio.Protocol],
        ) -> tuple[asyncio.Transport, asyncio.Protocol]:
            near = factory()
            return clock.connect_memory(near, Server(answer, log))[0], near

        asyncio.get_running_loop().call_later(for_s, stop.set)
        url = "http://gpu-host:8080/metrics"
        done = await scrape(url, interval_s, found.append, stop, headers=headers, dial=dial)
        return done, found, log

    return clock.run_virtual(main())


def page(queue: int) -> bytes:
    return b"tgi_queue_size %d\n" % queue


def test_ticks_are_absolute_the_last_comes_at_the_stop_and_the_stamp_is_the_exchange_s_middle() -> None:
    done, found, log = collect(lambda: (0.2, 200, page(1)))
    assert log.asked_s == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.2])
    assert [s.t_s for s in found] == pytest.approx([0.1, 0.6, 1.1, 1.6, 2.1, 2.3])
    assert (log.connections, done.samples, done.failed, done.skipped) == (1, 6, 0, 0)
    assert (done.family, done.reason, done.warnings) == ("tgi", None, [])


def test_a_slow_server_skips_ticks_and_never_has_two_scrapes_under_way() -> None:
    done, found, log = collect(lambda: (0.45, 200, page(1)), interval_s=0.4, for_s=2.0)
    # Each takes longer than it may: cut off at 0.36 s, asked again at the next tick.
    assert found == [] or all(s.t_s > 2.0 for s in found)
    assert done.failed >= 4
    assert all(b - a >= 0.4 - 1e-9 for a, b in zip(log.asked_s, log.asked_s[1:], strict=False))
    assert any("no answer in 0.36 s" in w for w in done.warnings)
    assert any("scrapes failed" in w for w in done.warnings)


def test_a_scrape_that_fails_is_a_gap_and_the_next_goes_on() -> None:
    answers = iter([(0.0, 200, page(1)), (0.0, 500, b"no"), None, (0.0, 200, b"tgi_queue_size x\n")])
    done, found, _ = collect(lambda: next(answers, (0.0, 200, page(2))))
    assert [s.waiting for s in found] == [1, 2, 2]
    assert (done.failed, done.samples) == (3, 3)
    assert [w.partition("metrics: ")[2][:40] for w in done.warnings[:1]] == [
        "http://gpu-host:8080/metrics: HTTP 500"
    ]
    assert len(done.warnings) == 4 and "3 of 6 scrapes failed" in done.warnings[-1]


@pytest.mark.parametrize("status", [401, 404, 501])
def test_a_server_without_metrics_is_asked_once_and_that_is_no_warning(status: int) -> None:
    done, found, log = collect(lambda: (0.0, status, b""))
    assert (len(log.asked_s), found, done.warnings, done.failed) == (1, [], [], 0)
    assert done.reason is not None and f"HTTP {status}" in done.reason


def test_an_unknown_page_is_asked_again_since_names_may_come_with_the_first_request() -> None:
    pages = iter([b"", b"python_info 1\n"])
    done, found, log = collect(lambda: (0.0, 200, next(pages, page(1))))
    assert len(found) == len(log.asked_s) - 2 and (done.family, done.reason) == ("tgi", None)
    done, found, _ = collect(lambda: (0.0, 200, b"python_info 1\n"))
    assert found == [] and done.family is None and done.warnings == []
    assert done.reason is not None and "no known server's names" in done.reason


def test_the_run_s_headers_go_along_and_credentials_are_in_no_message() -> None:
    done, _, log = collect(lambda: (0.0, 503, b""), headers={"authorization": "Bearer s3cret"})
    assert b"bearer s3cret" in log.heads[0].lower()
    assert "s3cret" not in str(done)


def test_a_page_without_end_is_given_up() -> None:
    done, found, _ = collect(lambda: (0.0, 200, b"x" * (9 << 20)), for_s=0.1)
    assert found == [] and any("more than" in w for w in done.warnings)


def test_an_address_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="url"):
        asyncio.run(scrape("ftp://x", 1.0, lambda _: None, asyncio.Event()))


def test_nothing_listening_is_a_failure_and_not_an_exception() -> None:
    stop = asyncio.Event()
    stop.set()
    done = asyncio.run(scrape("http://127.0.0.1:9/metrics", 1.0, lambda _: None, stop))
    assert (done.samples, done.failed) == (0, 1)
    assert done.reason is not None and "connection refused" in done.reason
    assert replace(done, warnings=[]) == Scraped(1.0, failed=1, reason=done.reason)
