"""What ``/metrics`` says about requests and batches, under TGI's names.

As in TGI a series appears with its first sample, and only successes enter the
histograms of requests.
"""

from __future__ import annotations

from itertools import accumulate, repeat

from loadgen.server.engine import Row, StepWork
from loadgen.server.service import WARM_UP_ID, Service
from loadgen.server.tgi.series import (
    Histogram,
    constant_summary_lines,
    counter_lines,
    histogram_lines,
    plain_lines,
)
from loadgen.server.tgi_policy import STRETCH_TOKENS

SECONDS_BUCKETS = tuple(accumulate(repeat(1.5, 35), lambda bound, by: bound * by, initial=0.0001))[1:]
"""Upper bounds of TGI's duration histograms (server.rs:1937-1947)."""
_REQUEST_DURATIONS = (
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
)


def _linear(high: int) -> tuple[float, ...]:
    return tuple(high / 100 * k for k in range(1, 101))


class RequestMetrics:
    """Requests by outcome, their durations in seconds and their lengths in tokens."""

    def __init__(self, max_input_tokens: int, max_total_tokens: int) -> None:
        self.count = 0
        self.success = 0
        self.failures: dict[str, int] = {}
        self._durations = tuple(Histogram(SECONDS_BUCKETS) for _ in _REQUEST_DURATIONS)
        self._input_length = Histogram(_linear(max_input_tokens))
        self._max_new_tokens = Histogram(_linear(max_total_tokens))
        self._generated_tokens = Histogram(_linear(max_total_tokens))

    def failed(self, cause: str | None, count: int = 1) -> None:
        """Counts failures under TGI's ``err`` label; None: TGI has none for it."""
        if cause is not None and count:
            self.failures[cause] = self.failures.get(cause, 0) + count

    def accepted(self, input_tokens: int, max_new_tokens: int) -> None:
        """A stretch passed validation: its prompt, and the most it may add."""
        self._input_length.observe(input_tokens)
        self._max_new_tokens.observe(max_new_tokens)

    def continued(self, input_tokens: int, max_new_tokens: int, generated_tokens: int) -> None:
        """A reply ended: each stretch after its first had been validated as a request of its own."""
        for before in range(STRETCH_TOKENS, generated_tokens, STRETCH_TOKENS):
            self.accepted(input_tokens + before, max_new_tokens)

    def succeeded(self, seconds: tuple[float, float, float, float, float], generated_tokens: int) -> None:
        """One generation ended: total, validation, queue, inference and per-token seconds."""
        self.success += 1
        for histogram, value in zip(self._durations, seconds, strict=True):
            histogram.observe(value)
        self._generated_tokens.observe(generated_tokens)

    def lines(self) -> list[str]:
        """The series as Prometheus text."""
        lines = []
        if self.count:
            lines += plain_lines("tgi_request_count", "counter", self.count)
        if self.success:
            lines += plain_lines("tgi_request_success", "counter", self.success)
        lines += counter_lines("tgi_request_failure", "err", self.failures)
        for name, histogram in zip(_REQUEST_DURATIONS, self._durations, strict=True):
            lines += histogram_lines(name, {"": histogram})
        lines += histogram_lines("tgi_request_input_length", {"": self._input_length})
        lines += histogram_lines("tgi_request_max_new_tokens", {"": self._max_new_tokens})
        lines += histogram_lines("tgi_request_generated_tokens", {"": self._generated_tokens})
        return lines


class BatchMetrics:
    """Forwards of the backend, from the service's own record of them.

    TGI's router calls ``prefill`` for a forward that takes new requests on board
    (with prefill chunking the running batch decodes in it too) and ``decode`` for
    any other. Filtering, concatenating and turning ids into text take no time here,
    so those durations are zeros. ``tgi_request_skipped_tokens`` counts speculated
    tokens, one sample a token: without speculation zeros too.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        flags = service.launch.launcher
        self._chunking = flags.prefill_chunking
        self._max_waiting_tokens = flags.max_waiting_tokens
        self._calls = {"prefill": 0, "decode": 0}
        self._durations = {"prefill": Histogram(SECONDS_BUCKETS), "decode": Histogram(SECONDS_BUCKETS)}
        self._nothing = {"prefill": Histogram(SECONDS_BUCKETS), "decode": Histogram(SECONDS_BUCKETS)}
        self._concat = {"chunking": 0, "backpressure": 0, "wait_exceeded": 0}
        self._concat_duration = Histogram(SECONDS_BUCKETS)
        self._next_size = Histogram(range(1, 1025))
        self._tokens = 0
        self._prefilling: set[int] = set()
        self._left = 0
        self._waiting_tokens = 1

    def forward(self, work: StepWork) -> None:
        """One forward has finished. The warm-up's does not count: TGI's passes no batch."""
        rows = work.rows
        if not rows or rows[0][0] == WARM_UP_ID:
            return
        # Those that have just come on board are the last in the batch, and prefill.
        boarded = self._board(rows) if rows[-1][1] else 0
        if boarded:
            method = "prefill"
            self._next_size.observe(boarded)
            if self._left:
                self._concat[self._concat_reason()] += 1
                self._concat_duration.observe(0.0)
            self._waiting_tokens = 1
        else:
            method = "decode"
            self._waiting_tokens += 1
        if not rows[-1][1]:
            self._prefilling.clear()
        self._calls[method] += 1
        self._durations[method].observe(work.duration_s)
        self._nothing[method].observe(0.0)
        self._left = self._service.batch_size

    def emitted(self, tokens: int) -> None:
        """So many tokens have been sent."""
        self._tokens += tokens

    def _board(self, rows: tuple[Row, ...]) -> int:
        prefilling = {row[0] for row in rows if row[1]}
        boarded = len(prefilling - self._prefilling)
        self._prefilling = prefilling
        return boarded

    def _concat_reason(self) -> str:
        if self._chunking:
            return "chunking"
        return "wait_exceeded" if self._waiting_tokens >= self._max_waiting_tokens else "backpressure"

    def lines(self) -> list[str]:
        """The series as Prometheus text."""
        service = self._service
        lines = plain_lines("tgi_batch_max_total_tokens", "gauge", service.limits.max_batch_total_tokens)
        begun = any(self._calls.values())
        if begun or service.queue_size:
            lines += plain_lines("tgi_queue_size", "gauge", service.queue_size)
        if begun:
            lines += plain_lines("tgi_batch_current_size", "gauge", service.batch_size)
            lines += plain_lines("tgi_batch_current_max_tokens", "gauge", service.batch_tokens)
        for outcome in ("count", "success"):
            lines += counter_lines(f"tgi_batch_inference_{outcome}", "method", self._calls)
        lines += counter_lines("tgi_batch_concat", "reason", self._concat)
        durations = {f'method="{method}"': histogram for method, histogram in self._durations.items()}
        nothing = {f'method="{method}"': histogram for method, histogram in self._nothing.items()}
        for name in ("inference", "forward"):
            lines += histogram_lines(f"tgi_batch_{name}_duration", durations)
        for name in ("decode", "filter"):
            lines += histogram_lines(f"tgi_batch_{name}_duration", nothing)
        lines += histogram_lines("tgi_batch_concat_duration", {'method="decode"': self._concat_duration})
        lines += histogram_lines("tgi_batch_next_size", {"": self._next_size})
        return lines + constant_summary_lines("tgi_request_skipped_tokens", 0, self._tokens)
