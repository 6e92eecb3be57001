"""Metrics in Prometheus' text format, as Python's client library writes them (vLLM, SGLang)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping


class Histogram:
    """Cumulative buckets; ``observe`` costs one bisection."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a sample, in the histogram's unit, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, help_text: str, labels: Mapping[str, str]) -> list[str]:
        """The series, empty or not."""
        lines = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip([*self._bounds, None], self._counts, strict=True):
            total += count
            le = "+Inf" if bound is None else repr(float(bound))
            lines.append(f"{name}_bucket{_shown({**labels, 'le': le})} {float(total)}")
        shown = _shown(labels)
        return [*lines, f"{name}_count{shown} {float(total)}", f"{name}_sum{shown} {self._sum!r}"]


def series(
    name: str, kind: str, help_text: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> list[str]:
    """One metric with its samples: (labels, value). A counter's samples carry ``_total``."""
    family = name.removesuffix("_total") if kind == "counter" else name
    shown = f"{family}_total" if kind == "counter" else name
    lines = [f"# HELP {shown} {help_text}", f"# TYPE {shown} {kind}"]
    return lines + [f"{shown}{_shown(labels)} {float(value)}" for labels, value in samples]


def _shown(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = [f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items())]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to ``most``: vLLM's bounds for counts of tokens."""
    bounds: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > most:
                return tuple(bounds)
            bounds.append(step * scale)
        scale *= 10
