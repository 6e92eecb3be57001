"""Boards as exporters show them: which of their series are energy or power, of which board. Pure.

NVIDIA's DCGM-exporter shows fields 155 (W), 156 (mJ) and, if told to, 157 (W), each
with the labels ``gpu``, ``UUID``, ``modelName`` and ``Hostname``. From 4.9 on (DCGM 4.7)
155 and 157 have other names, and field 1611, in J, takes the place of 156. Field 155 is
what ``nvmlDeviceGetPowerUsage`` gives: an average over 1 s on Ampere and newer, except
GA100 and older boards, where it is instantaneous (nvml.h).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadgen.errors import PowerError
from loadgen.types import Domain, Reading

COUNTER_MJ, COUNTER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL"
USAGE = ("DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_POWER_USAGE")
INSTANT = ("DCGM_FI_DEV_BOARD_POWER_RAW_WATTS", "DCGM_FI_DEV_POWER_USAGE_INSTANT")
OWN_GPU = "loadgen_gpu_energy_joules_total"
OWN_CPU = "loadgen_cpu_energy_joules_total"
DCGM_NAMES = (COUNTER_MJ, COUNTER, *INSTANT, *USAGE)
NAMES = (*DCGM_NAMES, OWN_GPU, OWN_CPU)
DEFAULT_UPDATE_S = 30.0
"""DCGM-exporter's collection interval unless it was started with -c (30,000 ms)."""
AVERAGE_WINDOW_S, INSTANT_WINDOW_S = 1.0, 0.025
_ENERGY = frozenset({COUNTER_MJ, COUNTER, OWN_GPU, OWN_CPU})
_SCALE = {COUNTER_MJ: 1e-3}
_BLANK = 140737488355328.0
"""DCGM's smallest "no value" (DCGM_FP64_BLANK, dcgm_structs.h; the integer ones are larger): as mJ
more than 6 years at 700 W."""
_INSTANT_MODELS = re.compile(
    r"A100|A800|\bA30\b|V100|\bT4\b|P100|\bP40\b|\bP4\b|RTX 20[678]0|Quadro|TITAN|GTX|K80|M60"
)
_GRACE_MODELS = re.compile(r"GH200|GB200|GB300")
"""Boards on a module with a Grace CPU, all of which the counter counts (`loadgen.power.nvml_channels`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a series is of: a board of a host, or (``index`` None) a zone of its processors."""

    host: str
    index: str | None
    uuid: str
    model: str
    zone: str = ""
    estimated: bool = False

    @property
    def stem(self) -> str:
        """The beginning of its domains' names."""
        return f"gpu{self.index}" if self.index is not None else self.zone


@dataclass(frozen=True, slots=True)
class Channel:
    """One metric of one source, and the domain it becomes (``update_s`` left open)."""

    source: Source
    metric: str
    domain: Domain

    def reading(self, t_s: float, raw: float) -> Reading | None:
        """The value in SI units; None for DCGM's ways of saying "no value"."""
        if not 0 <= raw < _BLANK:  # also NaN
            return None
        value = raw * _SCALE.get(self.metric, 1.0)
        if self.metric in _ENERGY:
            return Reading(t_s, self.domain.name, energy_j=value)
        return Reading(t_s, self.domain.name, power_w=value)


def source_of(metric: str, labels: Mapping[str, str]) -> Source:
    """The board or zone of a series. Its host is what it calls itself, else what was scraped."""
    host = labels.get("Hostname") or labels.get("instance") or ""
    if metric == OWN_CPU:
        return Source(host, None, "", "", labels.get("zone", "cpu"), labels.get("method") == "estimated")
    if metric == OWN_GPU:
        return Source(host, labels.get("index", "?"), labels.get("uuid", ""), "")
    return Source(host, labels.get("gpu", "?"), labels.get("UUID", ""), labels.get("modelName", ""))


def is_partition(labels: Mapping[str, str]) -> bool:
    """Whether the series is that of a MIG instance: its power is still the whole board's."""
    return "GPU_I_ID" in labels


def choose(
    found: Iterable[tuple[str, Mapping[str, str]]], gpus: Sequence[str], *, several: str
) -> list[Channel]:
    """The channels of the boards chosen by ``gpus`` (UUIDs, their beginnings, indices; empty: all).

    ``found``: metric and labels of every series. ``several``: what to do when the
    boards are those of several hosts, which would add up under one name. Raises
    PowerError when a choice fits no board or several, or hosts are mixed.
    """
    metrics: dict[Source, set[str]] = {}
    for metric, labels in found:
        metrics.setdefault(source_of(metric, labels), set()).add(metric)
    boards = [source for source in metrics if source.index is not None]
    chosen = _chosen(boards, gpus) + [source for source in metrics if source.index is None]
    hosts = sorted({source.host for source in chosen})
    if len(hosts) > 1:
        raise PowerError(f"boards of several hosts ({', '.join(hosts)}): {several}")
    for stem in {source.stem for source in chosen}:
        same = [source for source in chosen if source.stem == stem]
        if len(same) > 1:
            who = ", ".join(source.uuid or source.zone for source in same)
            raise PowerError(f"several boards are called {stem} ({who}): choose with power.gpus by UUID")
    return [channel for source in chosen for channel in _channels(source, metrics[source])]


def _chosen(boards: Sequence[Source], gpus: Sequence[str]) -> list[Source]:
    if not gpus:
        return list(boards)
    chosen: dict[Source, None] = {}
    for wanted in gpus:
        fits = [b for b in boards if b.index == wanted or (wanted and b.uuid.startswith(wanted))]
        if len(fits) != 1:
            there = ", ".join(f"{b.host} {b.index}: {b.uuid}" for b in boards)
            what = "no board" if not fits else f"{len(fits)} boards"
            raise PowerError(f"power.gpus: {what} for {wanted!r}; there are {there}")
        chosen[fits[0]] = None
    return list(chosen)


def _channels(source: Source, metrics: set[str]) -> list[Channel]:
    """One channel for each domain: field 157 before an instantaneous 155."""
    name, what = source.stem, " ".join(filter(None, (source.model, source.uuid, source.host)))
    by_domain: dict[str, Channel] = {}
    for metric in NAMES:  # the first to claim a domain keeps it
        if metric not in metrics:
            continue
        note = f"{metric}; {what}"
        if metric in _ENERGY:
            whole = ".module_energy" if _GRACE_MODELS.search(source.model) else ""
            domain = Domain(name + whole, "estimated" if source.estimated else "counter", None, note)
        elif metric in INSTANT or _INSTANT_MODELS.search(source.model):
            domain = Domain(f"{name}.instant", "instant", INSTANT_WINDOW_S, note)
        else:
            domain = Domain(f"{name}.average", "average", AVERAGE_WINDOW_S, note)
        by_domain.setdefault(domain.name, Channel(source, metric, domain))
    return list(by_domain.values())


def board_rows(channels: Sequence[Channel]) -> tuple[dict[str, object], ...]:
    """The boards as rows of the manifest; what an exporter does not tell is None."""
    sources = dict.fromkeys(c.source for c in channels if c.source.index is not None)
    return tuple(
        {
            "domain": s.stem,
            "index": int(s.index) if s.index is not None and s.index.isdecimal() else None,
            "uuid": s.uuid,
            "name": s.model,
            "driver": None,
            "power_limit_w": None,
            "mig": None,
        }
        for s in sources
    )


class Cadence:
    """How often a published value is renewed, by the instants at which it was seen to differ."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._first_s = 0.0
        self._latest_s = 0.0
        self._changes = 0

    def saw(self, t_s: float, value: float) -> None:
        """A look at ``t_s``; looks are in time order."""
        if self._last is not None and value != self._last:
            self._changes += 1
            self._latest_s = t_s
            if self._changes == 1:
                self._first_s = t_s
        self._last = value

    @property
    def update_s(self) -> float | None:
        """The mean time between two renewals; None before two were seen.

        A renewal that repeats the value, or hides between two looks, makes it longer.
        """
        if self._changes < 2:
            return None
        return (self._latest_s - self._first_s) / (self._changes - 1)
