"""Counters and histograms under TGI's names, as Prometheus text.

Only what this server truly has: the request series and the gauges of queue and
batch. A series appears with its first sample and only successes enter the
histograms, as in TGI.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

from loadgen.server.service import Service
from loadgen.server.validation import ApiError

SECONDS_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))
"""Upper bounds of TGI's duration histograms (server.rs:1937-1947)."""


class Histogram:
    """Cumulative buckets; ``observe`` costs one bisection."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Adds one sample, in the histogram's unit."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """The series as Prometheus text; nothing without a sample."""
        if not any(self._counts):
            return []
        lines = [f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip([*self._bounds, None], self._counts, strict=True):
            total += count
            label = "+Inf" if bound is None else repr(bound)
            lines.append(f'{name}_bucket{{le="{label}"}} {total}')
        return [*lines, f"{name}_sum {self._sum!r}", f"{name}_count {total}"]


def _linear(high: int) -> tuple[float, ...]:
    return tuple(high * k / 100 for k in range(1, 101))


class RequestMetrics:
    """What ``/metrics`` says about requests. ``max_total_tokens`` spans the length histograms."""

    def __init__(self, max_total_tokens: int) -> None:
        self.count = 0
        self.success = 0
        self.failures: dict[str, int] = {}
        self._durations = {
            name: Histogram(SECONDS_BUCKETS)
            for name in (
                "tgi_request_duration",
                "tgi_request_validation_duration",
                "tgi_request_queue_duration",
                "tgi_request_inference_duration",
                "tgi_request_mean_time_per_token_duration",
            )
        }
        self._lengths = {
            name: Histogram(_linear(max_total_tokens))
            for name in (
                "tgi_request_input_length",
                "tgi_request_max_new_tokens",
                "tgi_request_generated_tokens",
            )
        }

    def failed(self, cause: str) -> None:
        """Counts a failure under TGI's ``err`` label."""
        self.failures[cause] = self.failures.get(cause, 0) + 1

    @contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Counts the error or the hang-up that leaves the block."""
        try:
            yield
        except ApiError as error:
            self.failed(error.kind)
            raise
        except asyncio.CancelledError:
            self.failed("dropped")
            raise

    def accepted(self, input_tokens: int, max_new_tokens: int) -> None:
        """A request passed validation."""
        self._lengths["tgi_request_input_length"].observe(input_tokens)
        self._lengths["tgi_request_max_new_tokens"].observe(max_new_tokens)

    def succeeded(self, seconds: tuple[float, float, float, float, float], generated_tokens: int) -> None:
        """One generation ended: total, validation, queue, inference and per-token seconds."""
        self.success += 1
        for histogram, value in zip(self._durations.values(), seconds, strict=True):
            histogram.observe(value)
        self._lengths["tgi_request_generated_tokens"].observe(generated_tokens)

    def text(self, service: Service) -> str:
        """The whole page."""
        lines = []
        if self.count:
            lines += ["# TYPE tgi_request_count counter", f"tgi_request_count {self.count}"]
        if self.success:
            lines += ["# TYPE tgi_request_success counter", f"tgi_request_success {self.success}"]
        if self.failures:
            lines.append("# TYPE tgi_request_failure counter")
            lines += [f'tgi_request_failure{{err="{err}"}} {n}' for err, n in sorted(self.failures.items())]
        for name, value in (
            ("tgi_queue_size", service.queue_size),
            ("tgi_batch_current_size", service.batch_size),
            ("tgi_batch_current_max_tokens", service.batch_tokens),
            ("tgi_batch_max_total_tokens", service.limits.max_batch_total_tokens),
        ):
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        for name, histogram in (self._durations | self._lengths).items():
            lines += histogram.lines(name)
        return "\n".join(lines) + "\n"
