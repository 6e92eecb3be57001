"""The newest rows as Prometheus metrics.

A counter or gauge whose value is not known now is absent, never 0: Prometheus then
shows a gap. Measured and estimated energy of a CPU are told apart by the label
``method``; memory is always an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

_STATE = {
    "temperature_c": ("loadgen_gpu_temperature_celsius", "Temperature of the board.", 1.0),
    "sm_clock_mhz": ("loadgen_gpu_sm_clock_hertz", "Clock of the streaming multiprocessors.", 1e6),
    "memory_clock_mhz": ("loadgen_gpu_memory_clock_hertz", "Clock of the board's memory.", 1e6),
    "power_limit_w": ("loadgen_gpu_power_limit_watts", "Enforced power limit.", 1.0),
    "pstate": ("loadgen_gpu_pstate", "Performance state, 0 is the fastest.", 1.0),
    "event_reasons": ("loadgen_gpu_clock_event_reasons", "NVML's bit mask of what lowers the clocks.", 1.0),
}
"""Gauges of the table ``state``: name, help, and what one of its units is in the metric's."""
_SERVER = {
    "running": (GaugeMetricFamily, "loadgen_server_requests_running", "Requests that the server runs."),
    "waiting": (GaugeMetricFamily, "loadgen_server_requests_waiting", "Requests that wait in the server."),
    "prompt_tokens": (CounterMetricFamily, "loadgen_server_prompt_tokens", "Prompt tokens, cached or not."),
    "output_tokens": (CounterMetricFamily, "loadgen_server_output_tokens", "Generated tokens."),
    "cached_tokens": (CounterMetricFamily, "loadgen_server_cached_tokens", "Prompt tokens from the cache."),
    "preemptions": (CounterMetricFamily, "loadgen_server_preemptions", "Requests preempted."),
}
_OVERHEAD = {
    "skipped": ("loadgen_sidecar_samples_skipped", "Ticks this sampler left out for being late."),
    "failed": ("loadgen_sidecar_samples_failed", "Reads of this sampler that gave nothing."),
}
_LATE = {"0.5": "wake_late_p50_s", "0.99": "wake_late_p99_s", "1": "wake_late_max_s"}


@dataclass(frozen=True, slots=True)
class Now:
    """What the metrics are made of. ``power``, ``state`` and ``server`` hold only values that are known now.

    ``domains`` and ``boards``: rows as in /v1/info. ``samples``: rows of power ever
    written here. ``cpu_s``: by process,
    ``restarts`` of the sampler since the start, ``age_s`` of the newest sample.
    """

    version: str
    id: str
    domains: Iterable[Mapping[str, Any]]
    boards: Iterable[Mapping[str, Any]]
    power: Mapping[str, float]
    state: Mapping[str, float]
    server: Mapping[str, float]
    overhead: Mapping[str, Any]
    samples: int
    cpu_s: Mapping[str, float]
    restarts: int
    readers: int
    age_s: float | None
    reasons: Mapping[str, str | None] = field(default_factory=dict)


def exposition(now: Now, accept: str) -> tuple[bytes, str]:
    """The page and its content type: the text format, or OpenMetrics where ``accept`` prefers it."""
    registry = CollectorRegistry()
    registry.register(_Collector(now))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector:
    """One scrape's metrics, for prometheus_client."""

    def __init__(self, now: Now) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        now = self._now
        uuids = {str(board["domain"]): str(board.get("uuid") or "") for board in now.boards}
        found = [*_power(now, uuids), *_state(now.state, uuids), *_server(now.server), *_own(now)]
        yield from (metric for metric in found if metric.samples)


def _power(now: Now, uuids: Mapping[str, str]) -> list[Metric]:
    gpu_j = CounterMetricFamily(
        "loadgen_gpu_energy_joules", "Energy counter of the board.", labels=["uuid", "index"]
    )
    gpu_w = GaugeMetricFamily(
        "loadgen_gpu_power_watts",
        "Power the board publishes; the domain says over what window and which part.",
        labels=["uuid", "index", "domain"],
    )
    cpu_j = CounterMetricFamily(
        "loadgen_cpu_energy_joules",
        "Energy of a CPU domain; goes on over restarts.",
        labels=["zone", "method"],
    )
    ram_j = CounterMetricFamily(
        "loadgen_ram_energy_joules", "Energy of the memory by a formula, not measured.", labels=["method"]
    )
    other_j = CounterMetricFamily(
        "loadgen_other_energy_joules", "Energy of any other domain.", labels=["domain", "method"]
    )
    other_w = GaugeMetricFamily(
        "loadgen_other_power_watts", "Power of any other domain.", labels=["domain", "method"]
    )
    for domain in now.domains:
        name, method = str(domain["name"]), str(domain["method"])
        value = now.power.get(name)
        if value is None:
            continue
        part = name.partition(".")[0]
        kind, index = part.rstrip("0123456789"), part.lstrip("abcdefghijklmnopqrstuvwxyz")
        energy = method not in ("instant", "average")
        if kind == "gpu" and index:
            labels = [uuids.get(part, ""), index]
            if energy:
                gpu_j.add_metric(labels, value)
            else:
                gpu_w.add_metric([*labels, name], value)
        elif not energy:
            other_w.add_metric([name, method], value)
        elif kind == "cpu":
            cpu_j.add_metric([name, method], value)
        elif kind == "ram":
            ram_j.add_metric([method], value)
        else:
            other_j.add_metric([name, method], value)
    return [gpu_j, gpu_w, cpu_j, ram_j, other_j, other_w]


def _state(state: Mapping[str, float], uuids: Mapping[str, str]) -> list[Metric]:
    families = {
        key: GaugeMetricFamily(name, text, labels=["uuid", "index"])
        for key, (name, text, _) in _STATE.items()
    }
    for column, value in state.items():
        board, _, key = column.partition(".")
        if key in families:
            labels = [uuids.get(board, ""), board.removeprefix("gpu")]
            families[key].add_metric(labels, value * _STATE[key][2])
    return list(families.values())


def _server(server: Mapping[str, float]) -> list[Metric]:
    return [
        family(name, text, value=server[key])
        for key, (family, name, text) in _SERVER.items()
        if key in server
    ]


def _own(now: Now) -> list[Metric]:
    """The sidecar's own state and cost."""
    found: list[Metric] = [
        CounterMetricFamily(name, text, value=now.overhead[key])
        for key, (name, text) in _OVERHEAD.items()
        if now.overhead.get(key) is not None
    ]
    late = GaugeMetricFamily(
        "loadgen_sidecar_lag_seconds",
        "How late the sampler woke: the share of the times at most so late.",
        labels=["share"],
    )
    for quantile, key in _LATE.items():
        if now.overhead.get(key) is not None:
            late.add_metric([quantile], now.overhead[key])
    cpu = CounterMetricFamily(
        "loadgen_sidecar_cpu_seconds", "CPU time of the sidecar's processes.", labels=["process"]
    )
    for process, seconds in now.cpu_s.items():
        cpu.add_metric([process], seconds)
    unread = GaugeMetricFamily(
        "loadgen_sidecar_unread", "1 for each part of the host that is not read.", labels=["part"]
    )
    for part, reason in now.reasons.items():
        if reason is not None:
            unread.add_metric([part], 1)
    info = GaugeMetricFamily("loadgen_sidecar_info", "Always 1.", labels=["version", "id"])
    info.add_metric([now.version, now.id], 1)
    samples = CounterMetricFamily(
        "loadgen_sidecar_samples", "Samples written to this data directory.", value=now.samples
    )
    restarts = CounterMetricFamily(
        "loadgen_sidecar_sampler_restarts", "Restarts of the sampler process.", value=now.restarts
    )
    readers = GaugeMetricFamily("loadgen_sidecar_live_readers", "Readers of live rows.", value=now.readers)
    found += [late, cpu, unread, info, samples, restarts, readers]
    if now.age_s is not None:
        found.append(
            GaugeMetricFamily(
                "loadgen_sidecar_sample_age_seconds", "Age of the newest sample.", value=now.age_s
            )
        )
    return found
