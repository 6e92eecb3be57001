"""Power and energy from a Prometheus that already scrapes a DCGM-exporter or our own sidecar.

What is fetched are the raw samples, by a range selector (``metric[60s]``), never a
rate or a resampled range. Their timestamps are those of Prometheus' wall clock at
each scrape; they are brought to ``clock.now()`` by asking that clock (``time()``) at
the opening and with every fetch (`loadgen.power.offset`). A sample is a scrape of
what the exporter had published: it is renewed as often as the slower of the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlencode

import orjson

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.exported import (
    DEFAULT_UPDATE_S,
    NAMES,
    Cadence,
    Channel,
    Source,
    board_rows,
    choose,
    is_partition,
    source_of,
)
from loadgen.power.offset import Exchange, Offset, fastest
from loadgen.power.web import Web
from loadgen.types import Domain, Reading

LOOK_BACK_S = 300.0
"""How far back the opening looks, for the scrape interval and whether there is anything."""
MOST_BOUND_S = 10e-3
_ROUND_TRIPS = 8
_CUT_S = 1e-3  # time() and the samples' stamps are both cut to milliseconds
_SEVERAL = "choose one with power.match, such as 'instance=\"gpu1:9400\"'"


@dataclass(frozen=True, slots=True)
class _Series:
    """One series as answered: its labels, and (Prometheus' time in s, value) in time order."""

    metric: str
    labels: Mapping[str, str]
    values: tuple[tuple[float, float], ...]


class PrometheusSource:
    """Domains as `loadgen.power.dcgm` names them; make one with `open`.

    ``boards``: rows for the manifest. ``offset``: Prometheus' clock minus ours at the
    opening. ``warnings``: one line for each kind of trouble.
    """

    blocking = True

    def __init__(self, api: _Api, channels: Sequence[Channel], offset: Offset) -> None:
        self._api = api
        self._channels = tuple(channels)
        self._cadence = {channel.domain.name: Cadence() for channel in channels}
        self._latest = {channel.domain.name: -math.inf for channel in channels}
        self._asked_s = -math.inf
        self._scrape_s = 0.0
        self._early: list[Reading] = []
        self.offset = offset
        self.boards = board_rows(channels)
        self.warnings: list[str] = []

    @classmethod
    def open(
        cls, url: str, match: str | None = None, gpus: Sequence[str] = (), *, token: str | None = None
    ) -> Self:
        """Asks for the last 5 minutes. ``match``: label matchers to add, as PromQL writes them
        (``instance="gpu1:9400"``); ``gpus``: UUIDs, their beginnings or indices, empty for all.

        Raises PowerError, saying what to do, when nothing answers, there is no such
        series (and what there is), boards of several hosts match, or one board's twice.
        """
        api = _Api(Web(url, token), match)
        try:
            offset = fastest([api.exchange() for _ in range(_ROUND_TRIPS)])
            offset = replace(offset, bound_s=offset.bound_s + _CUT_S)
            found = api.samples(LOOK_BACK_S)
            if not found:
                raise PowerError(api.nothing())
            _refuse_doubles(found)
            channels = choose([(s.metric, s.labels) for s in found], gpus, several=_SEVERAL)
        except PowerError as exc:
            raise PowerError(f"prometheus: {exc}") from exc
        source = cls(api, channels, offset)
        if any(is_partition(s.labels) for s in found):
            source.warnings.append("power: MIG is on: a board's power is that of all its tenants")
        if offset.bound_s > MOST_BOUND_S:
            source.warnings.append(
                f"power: prometheus: its clock is known to {1e3 * offset.bound_s:.3g} ms only"
            )
        readings = source._new(found)
        source._scrape_s = _median_gap_s(found)
        since_s = clock.now() - source.settle_s
        source._early = [reading for reading in readings if reading.t_s >= since_s]
        return source

    @property
    def settle_s(self) -> float:
        """How long after an instant there is a sample of what had been used by then."""
        return self.interval_s + max(domain.update_s or 0.0 for domain in self.domains())

    @property
    def interval_s(self) -> float:
        """The scrape interval, found from the samples."""
        return self._scrape_s or DEFAULT_UPDATE_S

    def domains(self) -> Sequence[Domain]:
        """What is read, with the period of renewal as far as it is known by now."""
        return [replace(channel.domain, update_s=self._update_s(channel)) for channel in self._channels]

    def _update_s(self, channel: Channel) -> float:
        # All values of a page are renewed together; a board's energy always differs.
        counter = self._cadence.get(channel.source.stem, self._cadence[channel.domain.name])
        return max(self._scrape_s, counter.update_s or DEFAULT_UPDATE_S)

    def read(self) -> list[Reading]:
        """The samples that have come since the last call, in time order; none between two scrapes.

        The first call also gives those of `settle_s` before the opening.
        Raises PowerError when Prometheus does not answer.
        """
        early, self._early = self._early, []
        now_s = clock.now()
        if now_s - self._asked_s < self._scrape_s / 4:  # it scrapes no faster for being asked more often
            return early
        newest_s = max(self._latest.values()) - self.offset.offset_s
        try:
            exchange = self._api.exchange()
            found = self._api.samples(min(max(now_s - newest_s, 0.0), 3600.0) + 2 * self._scrape_s + 1.0)
        except PowerError as exc:
            self._early = early
            raise PowerError(f"prometheus: {exc}") from exc
        self._asked_s = now_s
        moved_s = abs(exchange.offset_s - self.offset.offset_s) - exchange.bound_s - self.offset.bound_s
        if moved_s > MOST_BOUND_S:
            self._warn(
                "power: prometheus: its clock and ours drifted apart by more than 10 ms during the run"
            )
        return early + self._new(found)

    def _new(self, found: Sequence[_Series]) -> list[Reading]:
        readings: list[Reading] = []
        for channel in self._channels:
            name = channel.domain.name
            values: dict[float, float] = {}
            for series in found:  # a board's MIG instances, or pods one after another, repeat its values
                if (
                    series.metric == channel.metric
                    and source_of(channel.metric, series.labels) == channel.source
                ):
                    for at_s, raw in series.values:  # they may be read an instant apart: the newer is larger
                        values[at_s] = max(raw, values.get(at_s, raw))
            for at_s, raw in sorted(values.items()):
                reading = channel.reading(at_s - self.offset.offset_s, raw)
                if at_s <= self._latest[name] or reading is None:
                    continue
                self._latest[name] = at_s
                self._cadence[name].saw(at_s, raw)
                readings.append(reading)
        return sorted(readings, key=lambda reading: reading.t_s)

    def close(self) -> None:
        """Nothing is held between reads."""

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


class _Api:
    """Prometheus' HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

    def __init__(self, web: Web, match: str | None) -> None:
        self._web = web
        self._match = match.strip().strip("{}").strip(", ") if match else ""

    def exchange(self) -> Exchange:
        """Asks its clock."""
        sent_s = clock.now()
        answer = self._ask("query", {"query": "time()"})
        back_s = clock.now()
        try:
            return Exchange(sent_s, float(answer["result"][1]), back_s)
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise PowerError(f"not an answer of Prometheus to time(): {answer!r:.100}") from exc

    def samples(self, back_s: float) -> list[_Series]:
        """The raw samples of the last ``back_s`` seconds."""
        selector = ",".join(filter(None, [f'__name__=~"{"|".join(NAMES)}"', self._match]))
        answer = self._ask("query", {"query": f"{{{selector}}}[{math.ceil(back_s)}s]"})
        try:
            return [
                _Series(
                    row["metric"]["__name__"],
                    row["metric"],
                    tuple((float(at_s), float(value)) for at_s, value in row["values"]),
                )
                for row in answer["result"]
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise PowerError(f"not an answer of Prometheus to a range selector: {exc!r}") from exc

    def nothing(self) -> str:
        """Why there may be no sample, with the names that look like power or energy."""
        names = self._ask("label/__name__/values", {})
        likely = [n for n in names if any(word in n.lower() for word in ("power", "energy", "watt", "joule"))]
        with_match = f" with {self._match}" if self._match else ""
        there = ", ".join(likely[:20]) or "none that looks like power or energy"
        return f"no sample of {' or '.join(NAMES)}{with_match} in {LOOK_BACK_S:g} s; series there: {there}"

    def _ask(self, path: str, parameters: Mapping[str, str]) -> Any:
        query = f"?{urlencode(parameters)}" if parameters else ""
        body = self._web.get(f"/api/v1/{path}{query}", also=(400, 422))
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            raise PowerError("not a Prometheus: its answer is no JSON (is power.url its root?)") from exc
        if not isinstance(answer, dict) or answer.get("status") != "success":
            why = answer.get("error") if isinstance(answer, dict) else answer
            raise PowerError(f"{why} (is power.match well-formed?)")
        return answer["data"]


def _refuse_doubles(found: Sequence[_Series]) -> None:
    """Raises PowerError when one board's series come from several scrape targets."""
    targets: dict[tuple[str, Source], set[tuple[str, str]]] = {}
    for series in found:
        target = (series.labels.get("job", ""), series.labels.get("instance", ""))
        targets.setdefault((series.metric, source_of(series.metric, series.labels)), set()).add(target)
    for (metric, _), several in targets.items():
        if len(several) > 1:
            listed = "; ".join(f'job="{job}",instance="{instance}"' for job, instance in sorted(several))
            raise PowerError(f"one board's {metric} is scraped more than once ({listed}): {_SEVERAL}")


def _median_gap_s(found: Sequence[_Series]) -> float:
    """The scrape interval: the median time between two samples of a series; 0 when none has two."""
    gaps = sorted(
        later[0] - earlier[0]
        for series in found
        for earlier, later in zip(series.values, series.values[1:], strict=False)
    )
    return round(gaps[len(gaps) // 2], 3) if gaps else 0.0
