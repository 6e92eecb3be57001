"""Prometheus series as text, as the exporter writes them that TGI uses: none before its first sample."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

_QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")


class Histogram:
    """Cumulative buckets with upper ``bounds`` in the samples' unit; ``observe`` costs one bisection."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Adds one sample, in the histogram's unit."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """The series without its TYPE; nothing without a sample. ``labels`` as ``key="value"``."""
        if not any(self._counts):
            return []
        lines = []
        total = 0
        before = f"{labels}," if labels else ""
        for bound, count in zip([*self._bounds, None], self._counts, strict=True):
            total += count
            le = "+Inf" if bound is None else number(bound)
            lines.append(f'{name}_bucket{{{before}le="{le}"}} {total}')
        own = f"{{{labels}}}" if labels else ""
        return [*lines, f"{name}_sum{own} {number(self._sum)}", f"{name}_count{own} {total}"]


def number(value: float) -> str:
    """A value as Prometheus text: whole numbers without a point."""
    return str(int(value)) if value == int(value) else repr(value)


def counter_lines(name: str, label: str, counts: Mapping[str, int]) -> list[str]:
    """A counter with one label, a line for each value that was counted."""
    lines = [f'{name}{{{label}="{value}"}} {count}' for value, count in sorted(counts.items()) if count]
    return [f"# TYPE {name} counter", *lines] if lines else []


def plain_lines(name: str, kind: str, value: float) -> list[str]:
    """A counter or gauge (``kind``) without labels."""
    return [f"# TYPE {name} {kind}", f"{name} {number(value)}"]


def histogram_lines(name: str, by_label: Mapping[str, Histogram]) -> list[str]:
    """A histogram, one series for each label (``key="value"``, empty for none)."""
    lines = [line for labels, histogram in by_label.items() for line in histogram.lines(name, labels)]
    return [f"# TYPE {name} histogram", *lines] if lines else []


def constant_summary_lines(name: str, value: float, count: int) -> list[str]:
    """A summary of ``count`` samples that are all equal to ``value``."""
    if not count:
        return []
    lines = [f'{name}{{quantile="{q}"}} {number(value)}' for q in _QUANTILES]
    return [
        f"# TYPE {name} summary",
        *lines,
        f"{name}_sum {number(value * count)}",
        f"{name}_count {count}",
    ]
