"""The ``power`` section of a scenario: who reads power, where, how often."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from loadgen.config import show
from loadgen.section import NotNegative, Positive, Section, wrong

_SIDECAR = re.compile(r"(?:([\w.-]+)=)?(https?://[^/?#\s@]+/?)", re.ASCII)


def address(url: str | None) -> str | None:
    """The http(s) address of a key, as it is. Raises what `wrong` makes; credentials are not repeated."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535, an unclosed bracket
        good = False
    if not good or re.search(r"\s", url):
        raise wrong("http://HOST[:PORT] or https://...", "", show(re.sub(r"//[^/@]*@", "//***@", url)))
    return url


class Power(Section):
    """Power sampling: which source, how often, how long idle before and after."""

    source: Literal["auto", "none", "nvml", "zeus", "dcgm", "prometheus"] = "auto"
    url: str | None = None
    match: str | None = None
    interval_s: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    baseline_s: NotNegative = 2.0
    gpus: list[str] = Field(default_factory=list)
    cpu_tdp_w: Positive | None = None
    ram_version: Literal[2, 3] = 3
    sidecars: list[str] = Field(default_factory=list)
    sidecar_token_file: Path | None = Field(None, strict=False)

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """(name, url) of each sidecar; a lone one may be nameless (""), others are node0, node1, ..."""
        pairs = [(m[1] or "", m[2]) for entry in self.sidecars if (m := _SIDECAR.fullmatch(entry))]
        return [(name or ("" if len(pairs) == 1 else f"node{i}"), url) for i, (name, url) in enumerate(pairs)]

    @model_validator(mode="after")
    def _one_way_to_read(self) -> Self:
        for entry in self.sidecars:
            if not _SIDECAR.fullmatch(entry):
                expected = "[NAME=]http://HOST:PORT, NAME of letters, digits, _ . -, no credentials (a token)"
                raise wrong(expected, "sidecars", show(re.sub(r"//[^/@]*@", "//***@", entry)))
        names = [name for name, _ in self.addresses]
        if len(set(names)) < len(names):
            raise wrong("each sidecar a name of its own", "sidecars", ", ".join(names))
        if self.sidecars and self.source != "auto":
            raise wrong(f"none with power.source {self.source}: sidecars are the source", "sidecars")
        return self

    @field_validator("gpus", mode="before")
    @classmethod
    def _indices(cls, gpus: object) -> object:
        """An index may be written as a number."""
        if not isinstance(gpus, list):
            return gpus
        return [str(g) if isinstance(g, int) and not isinstance(g, bool) else g for g in gpus]

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str | None) -> str | None:
        return address(url)

    @model_validator(mode="after")
    def _asked_of_somebody(self) -> Self:
        remote = self.source in ("dcgm", "prometheus")
        if remote and self.url is None:
            port = 9400 if self.source == "dcgm" else 9090
            raise wrong(f"the address of the {self.source}, such as http://HOST:{port}", "url", "nothing")
        if self.url is not None and not remote:
            raise wrong(f"none with source {self.source} (only dcgm and prometheus have one)", "url", "one")
        if self.match is not None and self.source != "prometheus":
            raise wrong(f"none with source {self.source} (only prometheus takes one)", "match", self.match)
        return self
