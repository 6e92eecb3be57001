"""A scenario: what to ask of which server, when, and what to measure. Checked models, key by key.

`loadgen.scenario_file` reads them from YAML. See docs/scenarios.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AliasChoices, Field, field_validator, model_validator

from loadgen.arrivals import (
    AllAtOnce,
    ClosedLoop,
    Constant,
    Gamma,
    Poisson,
    Stage,
    Steps,
    Uniform,
    UniformScript,
)
from loadgen.launch import (
    DEFAULT_DTYPE,
    DEFAULT_GPU,
    DEFAULT_MODEL,
    Dialect,
    Faults,
    Hardware,
    Launch,
    Launcher,
    Scheduler,
)
from loadgen.scenario_power import Power, address
from loadgen.section import Count, NotNegative, Positive, Section, wrong
from loadgen.types import ArrivalProcess, Overflow

MOST_REQUESTS = 10_000_000  # the whole plan is in memory before the first byte

Requests = Annotated[int, Field(gt=0, le=MOST_REQUESTS)]


class Server(Section):
    """Where requests go: ``url``, or without one the embedded server that model, gpu and dtype describe."""

    url: str | None = None
    protocol: Literal["auto", "tgi", "openai-chat", "openai-completions", "null"] = "auto"
    model: str | None = None
    gpu: str | None = None
    dtype: str | None = None
    streaming: bool = True
    headers: dict[str, str] = Field(default_factory=dict)
    extra_body: dict[str, Any] = Field(default_factory=dict)
    metrics_interval_s: Annotated[float, Field(ge=0, le=60)] | None = None
    dialect: Dialect = "tgi"
    scheduler: Scheduler | None = None
    max_concurrent_requests: Count = 128
    launcher: Launcher = Launcher()
    hardware: Hardware = Hardware()
    faults: Faults = Faults()

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str | None) -> str | None:
        return address(url)

    @field_validator("headers")
    @classmethod
    def _well_formed(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # RFC 9110 section 5.6.2, token
                raise wrong("header names of letters, digits and !#$%&'*+-.^_`|~", "", repr(name))
            if re.search(r"[\r\n\0]", value):
                raise wrong(f"no line breaks in the value of {name}", "", "one")
        return headers

    @field_validator("metrics_interval_s")
    @classmethod
    def _at_most_10_hz(cls, interval_s: float | None) -> float | None:
        if interval_s is not None and 0 < interval_s < 0.1:
            raise wrong(">= 0.1 s between two looks at /metrics, or 0 for none", "", f"{interval_s:g}")
        return interval_s

    @model_validator(mode="after")
    def _sendable(self) -> Self:
        try:
            orjson.dumps(self.extra_body)
        except orjson.JSONEncodeError as exc:
            raise wrong(f"values that JSON can hold ({exc})", "extra_body") from None
        return self

    def launch(self, seed: int) -> Launch:
        """The embedded server these keys describe, under the scenario's seed."""
        return Launch(
            model=self.model or DEFAULT_MODEL,
            gpu=self.gpu or DEFAULT_GPU,
            dtype=self.dtype or DEFAULT_DTYPE,
            seed=seed,
            dialect=self.dialect,
            scheduler=self.scheduler,
            max_concurrent_requests=self.max_concurrent_requests,
            launcher=self.launcher,
            hardware=self.hardware,
            faults=self.faults,
        )


class Shaping(Section):
    """When demand is released: at once, or by a gate that opens every ``interval_s``."""

    policy: Literal["none", "gate"] = "none"
    interval_s: Positive | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.policy == "gate" and self.interval_s is None:
            raise wrong("a number of seconds between openings of the gate", "interval_s", "nothing")
        return self


class Load(Section):
    """What all patterns share: how many requests, for how long, with which limits."""

    requests: Requests | None = None
    duration_s: Positive | None = None
    warmup_requests: Annotated[int, Field(ge=0, le=MOST_REQUESTS)] = 0
    timeout_s: Positive = 120.0
    max_in_flight: Count | None = None
    overflow: Overflow = "queue"
    shaping: Shaping = Shaping()

    def process(self) -> ArrivalProcess:
        """The arrival process these keys describe."""
        raise TypeError(f"{type(self).__name__} describes no arrival process")

    @property
    def bounded(self) -> bool:
        """Whether the pattern ends by itself, without ``requests`` or ``duration_s``."""
        return False

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.requests is None and self.duration_s is None and not self.bounded:
            raise wrong("a count of requests (or a duration_s)", "requests", "nothing")
        return self


class ConstantLoad(Load):
    """Equal gaps; CV 0."""

    pattern: Literal["constant"]
    interval_s: Positive | None = None
    rate_rps: Positive | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.interval_s is None) == (self.rate_rps is None):
            got = "nothing" if self.interval_s is None else "both"
            raise wrong("either interval_s or rate_rps", "interval_s", got)
        return self

    def process(self) -> ArrivalProcess:
        return Constant(self.interval_s if self.interval_s is not None else 1 / (self.rate_rps or 1))


class UniformLoad(Load):
    """Gaps drawn from U(low_s, high_s); ``uniform_script`` is what the study's code does instead."""

    pattern: Literal["uniform", "uniform_script"]
    low_s: NotNegative
    high_s: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_s < self.low_s:
            raise wrong(f">= low_s ({self.low_s})", "high_s", str(self.high_s))
        return self

    def process(self) -> ArrivalProcess:
        law = Uniform if self.pattern == "uniform" else UniformScript
        return law(self.low_s, self.high_s)


class PoissonLoad(Load):
    """Independent exponential gaps."""

    pattern: Literal["poisson"]
    rate_rps: Positive

    def process(self) -> ArrivalProcess:
        return Poisson(self.rate_rps)


class GammaLoad(Load):
    """Gamma gaps; ``burstiness`` is the shape: 1 = Poisson, below 1 burstier, infinity = constant."""

    pattern: Literal["gamma"]
    rate_rps: Positive
    burstiness: Annotated[float, Field(gt=0)]

    def process(self) -> ArrivalProcess:
        return Gamma(self.rate_rps, self.burstiness)


class StageLoad(Section):
    """One stage: a rate held for a time."""

    rate_rps: NotNegative = Field(validation_alias=AliasChoices("rate_rps", "rate"))
    duration_s: Positive = Field(validation_alias=AliasChoices("duration_s", "duration"))


class StepsLoad(Load):
    """Stages of constant rate, one after another."""

    pattern: Literal["steps"]
    stages: Annotated[list[StageLoad], Field(min_length=1)]
    law: Literal["constant", "poisson"] = "constant"

    @property
    def bounded(self) -> bool:
        return True

    def process(self) -> ArrivalProcess:
        return Steps(tuple(Stage(s.rate_rps, s.duration_s) for s in self.stages), self.law)


class BurstLoad(Load):
    """Everything at once."""

    pattern: Literal["all_at_once"]
    requests: Requests

    def process(self) -> ArrivalProcess:
        return AllAtOnce()


class ClosedLoad(Load):
    """``max_in_flight`` requests always under way; the next starts when one ends."""

    pattern: Literal["closed_loop"]
    requests: Requests
    max_in_flight: Count

    @model_validator(mode="after")
    def _no_demand_times(self) -> Self:
        if self.duration_s is not None:
            raise wrong("none: a closed loop is planned by its count", "duration_s", str(self.duration_s))
        if self.shaping.policy != "none":
            raise wrong("no shaping: a closed loop has no demand times", "shaping", self.shaping.policy)
        if self.overflow != "queue":
            raise wrong("'queue': a closed loop drops nothing", "overflow", self.overflow)
        return self

    def process(self) -> ArrivalProcess:
        return ClosedLoop()


class TraceLoad(Load):
    """Recorded arrival times (Azure CSV): scaled in time, thinned by a seeded keep-fraction, cut."""

    pattern: Literal["trace"]
    path: Path = Field(strict=False)
    time_scale: Positive = 1.0
    thin: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def bounded(self) -> bool:
        return True


class Prompts(Section):
    """What all prompt sources share."""

    max_new_tokens: Count = 256
    tokenizer: Path | None = Field(None, strict=False)


class SyntheticPrompts(Prompts):
    """Seeded chats whose lengths follow the thank-you set."""

    source: Literal["synthetic"]


class FilePrompts(Prompts):
    """Conversations or prompts from a file."""

    path: Path = Field(strict=False)
    repeat: bool = False
    shuffle: bool = False


class JsonlPrompts(FilePrompts):
    """One object a line with ``messages`` or ``prompt``."""

    source: Literal["jsonl"]


class SharegptPrompts(FilePrompts):
    """ShareGPT JSON: the first turn and its known reply length, or whole chats ending in thanks."""

    source: Literal["sharegpt"]
    turns: Literal["first", "all"] = "first"


class TracePrompts(Prompts):
    """Prompt and reply lengths of a trace, over synthetic text; without ``path``, those of ``load.path``."""

    source: Literal["trace"]
    path: Path | None = Field(None, strict=False)
    repeat: bool = False


class Slo(Section):
    """Limits a good request keeps, all at once. Seconds; from sending, or as a user feels it from due."""

    ttft_s: Positive | None = None
    ttft_from_due_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    e2e_from_due_s: Positive | None = None


# The extension points: a pattern or source is one class here (its keys, checked) that builds one
# object from arrivals.py or prompts/. Classes, not "module:Class" text: validation needs them anyway.
LOADS: dict[str, type[Load]] = {
    "constant": ConstantLoad,
    "uniform": UniformLoad,
    "uniform_script": UniformLoad,
    "poisson": PoissonLoad,
    "gamma": GammaLoad,
    "steps": StepsLoad,
    "all_at_once": BurstLoad,
    "closed_loop": ClosedLoad,
    "trace": TraceLoad,
}
SOURCES: dict[str, type[Prompts]] = {
    "synthetic": SyntheticPrompts,
    "jsonl": JsonlPrompts,
    "sharegpt": SharegptPrompts,
    "trace": TracePrompts,
}
SECTIONS: dict[str, type[Section]] = {"server": Server, "power": Power, "slo": Slo}
SERVER_SECTIONS: dict[str, type[Section]] = {
    "launcher": Launcher,
    "hardware": Hardware,
    "faults": Faults,
}

AnyLoad = Annotated[
    ConstantLoad | UniformLoad | PoissonLoad | GammaLoad | StepsLoad | BurstLoad | ClosedLoad | TraceLoad,
    Field(discriminator="pattern"),
]
AnyPrompts = Annotated[
    SyntheticPrompts | JsonlPrompts | SharegptPrompts | TracePrompts, Field(discriminator="source")
]


class Scenario(Section):
    """A whole scenario."""

    name: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    server: Server = Server()
    load: AnyLoad
    prompts: AnyPrompts = SyntheticPrompts(source="synthetic")
    power: Power = Power()
    slo: Slo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths_of_trace = isinstance(self.prompts, TracePrompts) and self.prompts.path is None
        if lengths_of_trace and not isinstance(self.load, TraceLoad):
            raise wrong("a trace file (only load.pattern trace has one to share)", "prompts", "no path")
        if self.power.sidecars and self.server.url is None:
            raise wrong(
                "a server.url: a sidecar measures a real host, and the embedded server's power is simulated",
                "power.sidecars",
            )
        return self
