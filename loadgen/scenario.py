"""A scenario: what to ask of which server, when, and what to measure. Checked models, key by key.

`loadgen.scenario_file` reads them from YAML. See docs/scenarios.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import Field, field_validator, model_validator

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
from loadgen.scenario_load import AnyLoad, TraceLoad
from loadgen.scenario_power import Power, address
from loadgen.section import Count, Positive, Section, wrong


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


class FixedPrompts(Prompts):
    """Prompts and replies all of one length, over synthetic text."""

    source: Literal["fixed"]
    prompt_tokens: Count
    output_tokens: Count


class Slo(Section):
    """Limits a good request keeps, all at once. Seconds; from sending, or as a user feels it from due."""

    ttft_s: Positive | None = None
    ttft_from_due_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    e2e_from_due_s: Positive | None = None


# The extension point: a source is one class here (its keys, checked) that builds one object of prompts/.
SOURCES: dict[str, type[Prompts]] = {
    "synthetic": SyntheticPrompts,
    "jsonl": JsonlPrompts,
    "sharegpt": SharegptPrompts,
    "trace": TracePrompts,
    "fixed": FixedPrompts,
}
SECTIONS: dict[str, type[Section]] = {"server": Server, "power": Power, "slo": Slo}
SERVER_SECTIONS: dict[str, type[Section]] = {
    "launcher": Launcher,
    "hardware": Hardware,
    "faults": Faults,
}

AnyPrompts = Annotated[
    SyntheticPrompts | JsonlPrompts | SharegptPrompts | TracePrompts | FixedPrompts,
    Field(discriminator="source"),
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
