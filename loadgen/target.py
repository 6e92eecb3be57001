"""What a run is aimed at: the embedded server, or a URL that is probed first.

Either way the result is a client that speaks the right protocol, the facts that
belong into the manifest, and a power source if there is one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from loadgen import clock
from loadgen.clients import make_client
from loadgen.clients.http import Dial
from loadgen.clients.probe import probe
from loadgen.clients.redaction import redact_url
from loadgen.errors import ConfigError, PowerError
from loadgen.physics.models import MODELS
from loadgen.power.combined import CombinedSource
from loadgen.power.host import CpuEstimate, RamEstimate, installed_gb
from loadgen.power.nvml import NvmlSource
from loadgen.power.rapl import RaplSource
from loadgen.power.simulated import SimulatedSource
from loadgen.scenario import Power, Scenario, Server
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Client, PowerSource, Step

API_KEY_VARIABLE = "LOADGEN_API_KEY"
_OWN_FILES, _MANY_FILES = 64, 65_536
_TAKES_IGNORE_EOS = ("embedded", "tgi", "vllm", "sglang", "llama.cpp")


@dataclass(frozen=True)
class Target:
    """An open target. ``power_reason``: why no board is read; ``power`` is None when nothing is."""

    client: Client
    kind: str
    protocol: str
    url: str | None
    model: str
    gpu: str | None
    dtype: str | None
    limits: Mapping[str, Any]
    power: PowerSource | None
    power_reason: str | None
    power_label: str
    embedded: Service | None = None
    notes: tuple[str, ...] = field(default=())

    def manifest(self) -> dict[str, Any]:
        """The ``server`` entry of run.json."""
        launch = None if self.embedded is None else self.embedded.launch
        return {
            "kind": self.kind,
            "url": None if self.url is None else redact_url(self.url),
            "model": self.model,
            "gpu": self.gpu,
            "dtype": self.dtype,
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
            if target.power is not None:
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

        client = _client(
            protocol,
            host.url or "http://embedded",
            server,
            model=service.limits.model_id,
            headers=server.headers,
            dial=None if host.url else dial,
            exact_lengths=exact_lengths,
        )
        power: PowerSource | None = None
        if scenario.power.source == "nvml":
            raise ConfigError(
                "power.source: nvml measures a real board; the embedded server has a simulated one"
            )
        if scenario.power.source == "auto":
            gpu = service.deployment.gpu
            power = SimulatedSource(service.boards, gpu=gpu.name, power_limit_w=gpu.tdp_w)
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
                power_reason=None if power else "power.source is none",
                power_label="simulated" if power else "unavailable",
                embedded=service,
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
    power, reason, unmeasured = _local_power(scenario)
    notes += unmeasured
    async with client:
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
            power_reason=reason,
            power_label=_label(power),
            notes=tuple(notes),
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


def _local_power(scenario: Scenario) -> tuple[PowerSource | None, str | None, list[str]]:
    """What this machine can measure, if the server is here too or the user asks for its boards.

    Returns the source, why no board is read, and why any other part is not.
    """
    power, url = scenario.power, str(scenario.server.url)
    local = any(f"//{name}" in url for name in ("127.", "localhost", "[::1]"))
    if power.source == "none":
        return None, "power.source is none", []
    if power.source == "auto" and not local:
        return None, "the server is on another machine, whose power this process cannot read", []
    if power.source == "nvml":
        return NvmlSource.open(power.gpus or None), None, []
    sources: list[PowerSource] = []
    reason, notes = None, []
    try:
        sources.append(NvmlSource.open(power.gpus or None))
    except PowerError as exc:
        reason = str(exc)
    try:
        sources.append(_cpu(power))
    except PowerError as exc:
        notes.append(f"power: cpu: {exc}")
    try:
        sources.append(RamEstimate(installed_gb(), power.ram_version))
    except PowerError as exc:
        notes.append(f"power: {exc}")
    return (CombinedSource(sources) if sources else None), reason, notes


def _cpu(power: Power) -> PowerSource:
    """RAPL; where it cannot be read the estimate, if the user gave the processors' power."""
    try:
        return RaplSource.open()
    except PowerError as exc:
        if power.cpu_tdp_w is None:
            raise
        estimate = CpuEstimate(power.cpu_tdp_w)
        estimate.warnings.append(f"power: cpu0.package is an estimate: {exc}")
        return estimate


def _label(power: PowerSource | None) -> str:
    """Whether anything is metered. What an estimate is, its domain says."""
    metered = power is not None and any(d.method != "estimated" for d in power.domains())
    return "measured" if metered else "unavailable"
