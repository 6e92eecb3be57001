"""What a run is aimed at: the embedded server, or a URL that is probed first.

Either way the result is a client that speaks the right protocol, the facts that
belong into the manifest, and a power source if there is one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yarl import URL

from loadgen import clock
from loadgen.clients import make_client
from loadgen.clients.http import Dial
from loadgen.clients.probe import probe
from loadgen.clients.redaction import redact_url
from loadgen.errors import ConfigError
from loadgen.metrics.scrape import Scraped, metrics_url, scrape
from loadgen.physics.boards import GPUS
from loadgen.physics.models import MODELS
from loadgen.physics.profile_file import as_object
from loadgen.power.dcgm import DcgmSource
from loadgen.power.local import open_local, openings
from loadgen.power.nvml import NvmlSource
from loadgen.power.prometheus import PrometheusSource
from loadgen.power.remote import TOKEN_VARIABLE
from loadgen.power.serving import Serving, serving_here
from loadgen.power.sidecars import Sidecars, open_sidecars
from loadgen.power.simulated import SimulatedSource
from loadgen.power.web import TOKEN_VARIABLE as EXPORTER_TOKEN_VARIABLE
from loadgen.power.zeus_source import ZeusSource
from loadgen.scenario import Scenario, Server
from loadgen.scenario_power import Power
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Client, PowerSource, ServerSample, Step

Scrape = Callable[[Callable[[ServerSample], None], asyncio.Event, asyncio.Event], Awaitable[Scraped]]
SCRAPE_INTERVAL_S = 1.0
"""Between two looks at the metrics of a server at a url, unless the scenario says otherwise."""
API_KEY_VARIABLE = "LOADGEN_API_KEY"
_PARTS = ("gpu", "cpu", "ram")
_UNREAD_WHEN_SIMULATED = {"gpu": None} | dict.fromkeys(
    _PARTS[1:], "the embedded server's host is not simulated, only its boards"
)
_OWN_FILES, _MANY_FILES = 64, 65_536
_TAKES_IGNORE_EOS = ("embedded", "tgi", "vllm", "sglang", "llama.cpp")


@dataclass(frozen=True)
class Target:
    """An open target. ``power_reasons``: why gpu, cpu or ram is not read, None where it is.

    ``scrape(write, stop, looked)`` collects the server's own metrics, as `loadgen.metrics.scrape.scrape`
    does; None when they are not asked for. ``look()`` tells whether the server is on the boards
    that this machine reads; None when it reads none, or sidecars tell it.
    """

    client: Client
    kind: str
    protocol: str
    url: str | None
    model: str
    gpu: str | None
    dtype: str | None
    limits: Mapping[str, Any]
    power: PowerSource | Sidecars | None
    power_reasons: Mapping[str, str | None]
    power_label: str
    embedded: Service | None = None
    scrape: Scrape | None = None
    look: Callable[[], Awaitable[Serving]] | None = None
    notes: tuple[str, ...] = field(default=())

    def manifest(self) -> dict[str, Any]:
        """The ``server`` entry of run.json."""
        made = None if self.embedded is None else self.embedded.deployment
        launch = None if made is None else made.launch
        return {
            "kind": self.kind,
            "url": None if self.url is None else redact_url(self.url),
            "model": self.model,
            "gpu": self.gpu,
            "dtype": self.dtype,
            # A file may change: what the run was simulated with stays with it.
            "profile": None if made is None or self.gpu in GPUS else as_object(made.profile),
            "shards": None if launch is None else launch.launcher.num_shard,
            "dialect": None if launch is None else launch.dialect,
            "scheduler": None if launch is None else launch.scheduling,
            "limits": dict(self.limits),
        }


def headers_for(server: Server, api_key: str | None) -> dict[str, str]:
    """Headers of every request: the scenario's, and the key from the flag or LOADGEN_API_KEY."""
    # A key read from a file brings its line break along.
    key = (api_key or os.environ.get(API_KEY_VARIABLE) or "").strip()
    return {**server.headers, **({"Authorization": f"Bearer {key}"} if key else {})}


def allow_connections(count: int) -> None:
    """Raises this process's limit on open files as far as the system lets it.

    ``count``: connections the plan needs at once, up to two ends of each in this
    process. Raises ConfigError with the number needed when they cannot fit.
    """
    import resource

    needed = 2 * count + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(needed, _MANY_FILES) if hard == resource.RLIM_INFINITY else hard
    if needed > wanted:
        raise ConfigError(
            f"{count} requests at once need {needed} open files and the hard limit is {hard}: "
            "raise it (ulimit -Hn) or set load.max_in_flight"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@asynccontextmanager
async def open_target(
    scenario: Scenario,
    *,
    api_key: str | None,
    exact_lengths: bool,
    on_step: Callable[[Step], None] | None,
) -> AsyncIterator[Target]:
    """Opens what the scenario names. ``on_step`` receives the embedded engine's steps.

    Raises ConfigError (nothing answers, unknown ids), CapacityError (does not fit),
    PowerError (a power source was demanded and cannot be read).
    """
    opened = _remote(scenario, api_key, exact_lengths) if scenario.server.url else None
    async with opened or _embedded(scenario, exact_lengths, on_step) as target:
        try:
            yield target
        finally:
            if target.power is not None and not isinstance(target.power, Sidecars):
                target.power.close()


@asynccontextmanager
async def _embedded(
    scenario: Scenario, exact_lengths: bool, on_step: Callable[[Step], None] | None
) -> AsyncIterator[Target]:
    server = scenario.server
    launch = server.launch(scenario.seed)
    service = Service(launch, on_step=on_step)
    address = None if clock.is_virtual() else ("127.0.0.1", 0)
    protocol = server.protocol
    if protocol == "auto":
        protocol = "tgi" if launch.dialect == "tgi" else "openai-chat"
    async with serving(service, address=address) as host:

        async def dial(factory: Callable[[], asyncio.Protocol]) -> tuple[asyncio.Transport, asyncio.Protocol]:
            near = factory()
            return clock.connect_memory(near, host.protocol())[0], near

        base_url, in_memory = host.url or "http://embedded", None if host.url else dial
        client = _client(
            protocol,
            base_url,
            server,
            model=service.limits.model_id,
            headers=server.headers,
            dial=in_memory,
            exact_lengths=exact_lengths,
        )
        power: PowerSource | None = None
        if scenario.power.source in ("nvml", "zeus", "dcgm", "prometheus"):
            raise ConfigError(
                f"power.source: {scenario.power.source} measures a real board; "
                "the embedded server has a simulated one"
            )
        if scenario.power.source == "auto":
            made = service.deployment
            power = SimulatedSource(service.boards, gpu=made.gpu.name, power_limit_w=made.power_limit_w)
        async with client:
            yield Target(
                client=client,
                kind="embedded",
                protocol=protocol,
                url=host.url,
                model=launch.model,
                gpu=launch.gpu,
                dtype=launch.dtype,
                limits=asdict(service.limits),
                power=power,
                power_reasons=_UNREAD_WHEN_SIMULATED
                if power
                else dict.fromkeys(_PARTS, "power.source is none"),
                power_label="simulated" if power else "unavailable",
                embedded=service,
                notes=service.deployment.notes,
                scrape=_scraping(base_url, server.metrics_interval_s, server.headers, in_memory),
            )


@asynccontextmanager
async def _remote(scenario: Scenario, api_key: str | None, exact_lengths: bool) -> AsyncIterator[Target]:
    server = scenario.server
    assert server.url is not None
    headers = headers_for(server, api_key)
    notes: list[str] = []
    found = None
    kind = "null"
    if server.protocol != "null":
        try:
            found = await probe(server.url, headers)
            kind = found.kind
        except ConfigError:
            if server.protocol == "auto" or server.model is None:
                raise
            # Told what to speak and what to ask for, nothing needs to be found out.
            kind = "unknown"
    protocol = server.protocol if found is None or server.protocol != "auto" else found.protocol
    model = _model_name(server, found.model if found else None, notes)
    if exact_lengths and kind not in _TAKES_IGNORE_EOS:
        notes.append(f"reply lengths are known but {kind} takes no ignore_eos: replies may end earlier")
    if exact_lengths and kind == "tgi":
        notes.append("reply lengths are known but TGI cannot force them: replies may end earlier")
    client = _client(
        protocol,
        server.url,
        server,
        model=model,
        headers=headers,
        dial=None,
        exact_lengths=exact_lengths and kind in _TAKES_IGNORE_EOS,
    )
    interval_s = SCRAPE_INTERVAL_S if server.metrics_interval_s is None else server.metrics_interval_s
    async with client, _power(scenario) as (power, reasons, unmeasured):
        scraped = kind == "null" or (isinstance(power, Sidecars) and power.scrapes)
        yield Target(
            client=client,
            kind=kind,
            protocol=protocol,
            url=server.url,
            model=model,
            gpu=server.gpu,
            dtype=server.dtype,
            limits=found.limits if found else {},
            power=power,
            power_reasons=reasons,
            power_label=_label(power),
            scrape=None if scraped else _scraping(server.url, interval_s, headers, None),
            look=_look(power, server.url),
            notes=(*notes, *unmeasured),
        )


def _look(power: PowerSource | Sidecars | None, url: str) -> Callable[[], Awaitable[Serving]] | None:
    boards = [str(row["domain"]) for row in getattr(power, "boards", ())]
    # An exporter's boards are on a host of its own.
    if power is None or not boards or isinstance(power, Sidecars | DcgmSource | PrometheusSource):
        return None
    return lambda: serving_here(power, boards, URL(url))


def _scraping(
    url: str, interval_s: float | None, headers: Mapping[str, str], dial: Dial | None
) -> Scrape | None:
    if not interval_s:
        return None
    return lambda write, stop, looked: scrape(
        metrics_url(url), interval_s, write, stop, headers=headers, dial=dial, looked=looked
    )


def _model_name(server: Server, served: str | None, notes: list[str]) -> str:
    """The name to ask for: what the server serves, unless the user named something it may know.

    A scenario written for the embedded server names a model of ours; sending that
    name to a real server would only be refused.
    """
    if server.model is None or (served is not None and server.model in MODELS):
        if server.model is not None and served != server.model:
            notes.append(
                f"asking for the model the server serves, {served}, not the scenario's {server.model}"
            )
        return served or "default"
    return server.model


def _client(
    protocol: str,
    url: str,
    server: Server,
    *,
    model: str,
    headers: Mapping[str, str],
    dial: Dial | None,
    exact_lengths: bool,
) -> Client:
    return make_client(
        protocol,
        url,
        model=model,
        headers=headers,
        streaming=server.streaming,
        extra_body=dict(server.extra_body) or None,
        dial=dial,
        exact_lengths="ignore_eos" if exact_lengths else None,
    )


Read = tuple[PowerSource | Sidecars | None, Mapping[str, str | None], list[str]]
"""The source, why a part is not read (None where it is), and what to tell of that."""


@asynccontextmanager
async def _power(scenario: Scenario) -> AsyncIterator[Read]:
    """Power of a server at a url: what sidecars read, else what this machine can."""
    power = scenario.power
    if not power.sidecars:
        yield _local_power(scenario)
        return
    async with open_sidecars(
        power.addresses,
        token=sidecar_token(power.sidecar_token_file),
        server_url=str(scenario.server.url),
        baseline_s=power.baseline_s,
    ) as sidecars:
        read = tuple(domain.name.rpartition("/")[2] for domain in sidecars.domains())
        # What one of several hosts does not read, the summary tells with the sum that lacks it.
        nowhere = {
            part: None if any(name.startswith(part) for name in read) else why
            for part, why in sidecars.reasons.items()
        }
        yield sidecars, sidecars.reasons, _unread(nowhere)


def sidecar_token(path: Path | None) -> str | None:
    """The file's content, else the environment's. Raises ConfigError for a file that holds none."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"power.sidecar_token_file: {path} cannot be read: {exc}") from exc
    if not token:
        raise ConfigError(f"power.sidecar_token_file: {path}: expected a token, got nothing")
    return token


def _local_power(scenario: Scenario) -> Read:
    """What this machine can measure, if the server is here too or the user asks for its boards."""
    power, url = scenario.power, str(scenario.server.url)
    local = any(f"//{name}" in url for name in ("127.", "localhost", "[::1]"))
    if power.source == "none":
        return None, dict.fromkeys(_PARTS, "power.source is none"), []
    if power.source == "auto" and not local:
        reason = (
            "the server is on another machine, whose power this process cannot read: "
            "start `loadgen sidecar` there and give --sidecar"
        )
        return None, dict.fromkeys(_PARTS, reason), []
    if power.source in ("dcgm", "prometheus"):
        unread = f"power.source is {power.source}: its boards' host is read by nothing else"
        return _exported(power), {"gpu": None, "cpu": unread, "ram": unread}, []
    if power.source in ("nvml", "zeus"):
        library = NvmlSource if power.source == "nvml" else ZeusSource
        devices = library.open(power.gpus or None)
        read = {part for part in _PARTS if any(d.name.startswith(part) for d in devices.domains())}
        unread = f"power.source is {power.source}, which does not read it here"
        return devices, {part: None if part in read else unread for part in _PARTS}, []
    parts = openings(power.gpus or None, power.cpu_tdp_w, power.ram_version)
    source, reasons = open_local(parts)
    return source, reasons, _unread(reasons)


def _unread(reasons: Mapping[str, str | None]) -> list[str]:
    """A line for each part that is not read; the boards' stands where their energy would."""
    return [
        f"power: {part}: {why.removeprefix(f'{part}: ')}"
        for part, why in reasons.items()
        if part != "gpu" and why is not None
    ]


def _exported(power: Power) -> PowerSource:
    """What an exporter, or a Prometheus that scrapes one, shows. Raises PowerError, saying what to do."""
    url, token = str(power.url), os.environ.get(EXPORTER_TOKEN_VARIABLE)
    if power.source == "dcgm":
        return DcgmSource.open(url, power.gpus, token=token)
    return PrometheusSource.open(url, power.match, power.gpus, token=token)


def _label(power: PowerSource | Sidecars | None) -> str:
    """Whether anything is metered. What an estimate is, its domain says."""
    metered = power is not None and any(d.method != "estimated" for d in power.domains())
    return "measured" if metered else "unavailable"
