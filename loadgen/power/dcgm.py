"""Power and energy of NVIDIA boards from a DCGM-exporter's ``/metrics`` page, on any machine.

The exporter renews its page every 30 s unless it was started with ``-c``
milliseconds. That interval is not on the page: it is found from the values'
changes and is 30 s until two were seen. A value may be older than that by what
DCGM's own cache adds (NVIDIA/DCGM issue 170: about 40 s at 30 s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self
from urllib.parse import urlsplit

from prometheus_client.samples import Sample

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.metrics.families import PageError, samples
from loadgen.power.exported import (
    DCGM_NAMES,
    DEFAULT_UPDATE_S,
    Cadence,
    Channel,
    board_rows,
    choose,
    is_partition,
    source_of,
)
from loadgen.power.web import Web
from loadgen.types import Domain, Reading

_SEVERAL = "one page shows them all; choose one host's with power.gpus by UUID"


class DcgmSource:
    """Domains ``gpuN`` (energy counter), ``gpuN.average`` or ``gpuN.instant``; make one with `open`.

    ``boards``: rows for the manifest. ``warnings``: one line for each kind of trouble.
    """

    blocking = True

    def __init__(self, web: Web, channels: Sequence[Channel]) -> None:
        self._web = web
        self._channels = tuple(channels)
        self._cadence = {channel.domain.name: Cadence() for channel in channels}
        self.boards = board_rows(channels)
        self.warnings: list[str] = []

    @classmethod
    def open(cls, url: str, gpus: Sequence[str] = (), *, token: str | None = None) -> Self:
        """Looks at the page once. ``gpus``: UUIDs, their beginnings or indices; empty for all.

        Raises PowerError, saying what to do, when nothing answers, the page shows no
        power, boards of several hosts, or not the boards wanted.
        """
        web = Web(url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/metrics", token)
        try:
            rows = [(row.name, row.labels) for _, rows in _rows(web).items() for row in rows]
            if not rows:
                raise PowerError(f"no {' or '.join(DCGM_NAMES[:2])} on the page: is it a DCGM-exporter's?")
            channels = choose(rows, gpus, several=_SEVERAL)
        except PowerError as exc:
            raise PowerError(f"dcgm: {exc}") from exc
        source = cls(web, channels)
        if any(is_partition(labels) for _, labels in rows):
            source.warnings.append("power: MIG is on: a board's power is that of all its tenants")
        return source

    @property
    def settle_s(self) -> float:
        """How long after an instant the page shows what had been used by then."""
        return max(domain.update_s or 0.0 for domain in self.domains())

    def domains(self) -> Sequence[Domain]:
        """What is read, with the period of renewal as far as it is known by now."""
        return [replace(channel.domain, update_s=self._update_s(channel)) for channel in self._channels]

    def _update_s(self, channel: Channel) -> float:
        # All values of a page are renewed together; a board's energy always differs.
        counter = self._cadence.get(channel.source.stem, self._cadence[channel.domain.name])
        return counter.update_s or DEFAULT_UPDATE_S

    def read(self) -> list[Reading]:
        """A reading of each domain on the page, stamped with the middle of the exchange (clock.now).

        Raises PowerError when there is none. A domain without a value leaves a gap and a warning.
        """
        before_s = clock.now()
        try:
            found = _rows(self._web)
        except PowerError as exc:
            raise PowerError(f"dcgm: {exc}") from exc
        now_s = (before_s + clock.now()) / 2
        readings: list[Reading] = []
        for channel in self._channels:
            # Rows of a board's MIG instances or pods repeat its value.
            values = [
                row.value
                for row in found.get(channel.metric, ())
                if source_of(channel.metric, row.labels) == channel.source
            ]
            shown = [r for r in (channel.reading(now_s, value) for value in values) if r is not None]
            if not shown:
                self._warn(f"power: dcgm: {channel.metric} of {channel.source.stem} was missing on the page")
                continue
            reading = max(shown, key=lambda r: r.energy_j or r.power_w or 0.0)
            self._cadence[channel.domain.name].saw(now_s, reading.energy_j or reading.power_w or 0.0)
            readings.append(reading)
        if not readings:
            raise PowerError("dcgm: the page shows none of the boards any more")
        return readings

    def close(self) -> None:
        """Nothing is held between reads."""

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _rows(web: Web) -> dict[str, list[Sample]]:
    try:
        return samples(web.get(""), DCGM_NAMES)
    except PageError as exc:
        raise PowerError(str(exc)) from exc
