"""The plan of a capacity question: its keys, and what must hold between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from analysis.macro import GRIDS, Grid, grid
from loadgen.config import near, show
from loadgen.launch import DEFAULT_MODEL, Launch, Launcher, Scheduler
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.section import Count, Positive, Section, wrong

HOURS = 24
Names = Annotated[list[str], Field(min_length=1)]
_MOST_RPS = 1e9
Rate = Annotated[float, Field(gt=0, le=_MOST_RPS)]
_Tokens = Annotated[int, Field(gt=0, le=10**9)]
_DAY = Annotated[list[Annotated[float, Field(ge=0, le=_MOST_RPS)]], Field(min_length=HOURS, max_length=HOURS)]


def _known_grid(value: Any) -> str | float | None:
    if value is None or (isinstance(value, str) and value in GRIDS):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise wrong(f"g CO2e per kWh, or one of {', '.join(GRIDS)}", got=show(value))


class Traffic(Section):
    """How many requests are wanted when: one rate, 24 hourly rates, a day's mean and peak, or a trace.

    ``peak_to_mean`` above 1 makes a day of one peak at ``peak_hour`` (see `workload.day_rates`).
    ``trace``: an Azure, Mooncake or BurstGPT trace, its rates times ``scale``, over bins of ``bin_s``.
    """

    rate_rps: Rate | None = None
    day: _DAY | None = None
    mean_rps: Rate | None = None
    peak_to_mean: Annotated[float, Field(ge=1, le=12)] = 1.0
    peak_hour: Annotated[int, Field(ge=0, lt=HOURS)] = 14
    trace: Path | None = Field(None, strict=False)
    bin_s: Positive | None = None
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("rate_rps", "day", "mean_rps", "trace"))
        if self.day is not None and not any(self.day):
            raise wrong("some hour with a rate above 0", "day", "only zeros")
        for key, default in (("peak_to_mean", 1.0), ("peak_hour", 14)):
            if getattr(self, key) != default and self.mean_rps is None:
                raise wrong(f"mean_rps with {key}", key, "no mean_rps")
        return self


class Arrivals(Section):
    """How requests come within an hour: ``gamma`` has shape ``burstiness`` (1 Poisson, below 1 burstier).

    ``trace``: the trace's own gaps and lengths in their order, scaled to the rate; its default.
    """

    law: Literal["poisson", "gamma", "trace"] | None = None
    burstiness: Positive | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.law == "gamma") != (self.burstiness is not None):
            got = "nothing" if self.burstiness is None else f"{self.burstiness:g} with law {self.law}"
            raise wrong("a shape for law gamma, and for no other", "burstiness", got)
        return self


class Lengths(Section):
    """Tokens of prompts and replies: means with coefficients of variation (0: all alike, else lognormal,
    independent), or those of a file. ``max_new_tokens``: the limit clients ask for, which is what a
    server reserves memory for; without it each reply's own length.
    """

    prompt_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    prompt_cv: Annotated[float, Field(ge=0, le=10)] = 0.0
    output_cv: Annotated[float, Field(ge=0, le=10)] = 0.0
    jsonl: Path | None = Field(None, strict=False)
    sharegpt: Path | None = Field(None, strict=False)
    trace: Path | None = Field(None, strict=False)
    max_new_tokens: _Tokens | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("prompt_tokens", "jsonl", "sharegpt", "trace"))
        if (self.prompt_tokens is None) != (self.output_tokens is None):
            missing = "output_tokens" if self.output_tokens is None else "prompt_tokens"
            raise wrong("prompt_tokens and output_tokens together", missing, "nothing")
        return self


class Slo(Section):
    """Limits that a good request keeps, all at once, in seconds from its demand; the share that must, in %.

    A reply of one token keeps any ``tpot_s``. A request that is refused keeps nothing.
    """

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.limits_s:
            raise wrong("at least one of ttft_s, tpot_s, e2e_s", "", "none")
        if self.percentile < 1:
            raise wrong("percent, such as 95", "percentile", f"{self.percentile:g}")
        return self

    @property
    def limits_s(self) -> Mapping[str, float]:
        """The limits that are set, by ``ttft``, ``tpot``, ``e2e``."""
        named = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        return {name: limit_s for name, limit_s in named.items() if limit_s is not None}

    @property
    def share(self) -> float:
        """The share of requests that must be good."""
        return self.percentile / 100


class Candidates(Section):
    """What replicas may be made of: every combination. A gpu is an id or the path of a profile."""

    gpus: Names = Field(default_factory=lambda: list(GPUS))
    dtypes: Names = Field(default_factory=lambda: ["bfloat16"])
    shards: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [1])

    @model_validator(mode="after")
    def _known(self) -> Self:
        for k, gpu in enumerate(self.gpus):
            if gpu not in GPUS and not Path(gpu).is_file():
                listed = ", ".join(GPUS)
                raise wrong(f"one of {listed}, or a profile's path", f"gpus.{k}", f"{gpu}{near(gpu, GPUS)}")
        for k, dtype in enumerate(self.dtypes):
            if dtype not in DTYPES:
                raise wrong(f"one of {', '.join(DTYPES)}", f"dtypes.{k}", f"{dtype}{near(dtype, DTYPES)}")
        return self


class Server(Section):
    """How every replica is launched."""

    scheduler: Scheduler = "tgi"
    max_concurrent_requests: Count = 128
    launcher: Launcher = Launcher()

    @model_validator(mode="after")
    def _no_shards(self) -> Self:
        if self.launcher.num_shard != 1:
            raise wrong(
                "candidates.shards to say how many boards share a replica",
                "launcher.num_shard",
                str(self.launcher.num_shard),
            )
        return self


class Policies(Section):
    """Shaping policies to try at the operating rate: gates, caps on requests in flight, token buckets.

    A bucket of so many tokens is refilled at the operating rate over ``1 - headroom``.
    """

    gate_s: list[Positive] = Field(default_factory=lambda: [0.1, 0.5, 1.0, 2.0])
    caps: list[Count] = Field(default_factory=lambda: [32, 64])
    buckets: list[Annotated[float, Field(ge=1, allow_inf_nan=False)]] = Field(default_factory=lambda: [1.0])


class Search(Section):
    """How hard to look: requests a simulation that confirms, and how many seeds; at most 100,000 requests."""

    requests: Annotated[int, Field(ge=100, le=100_000)] = 10_000
    seeds: Annotated[int, Field(ge=2, le=100)] = 5


class CapacityPlan(Section):
    """A whole question. ``price_per_gpu_h``: of one board, by gpu, in ``currency``; none is assumed.

    ``headroom``: the share of the highest rate that is kept free. ``grid``: g CO2e per kWh, or a code of
    `analysis.macro.GRIDS`. ``switch_off``: whether replicas that an hour does not need are off.
    """

    name: Annotated[str, Field(min_length=1)] = "capacity"
    seed: Annotated[int, Field(ge=0)] = 1
    model: str = DEFAULT_MODEL
    traffic: Traffic
    arrivals: Arrivals = Arrivals()
    lengths: Lengths | None = None
    slo: Slo
    candidates: Candidates = Candidates()
    server: Server = Server()
    price_per_gpu_h: dict[str, Positive] = Field(default_factory=dict)
    currency: Annotated[str, Field(min_length=1)] = "USD"
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.15
    pue: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    grid: Annotated[str | float | None, BeforeValidator(_known_grid)] = None
    switch_off: bool = False
    rank_by: Literal["cost", "energy", "boards"] | None = None
    shaping: Policies = Policies()
    search: Search = Search()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model not in MODELS and not Path(self.model).exists():
            listed = f"one of {', '.join(MODELS)}, or the path of a config.json"
            raise wrong(listed, "model", f"{self.model}{near(self.model, MODELS)}")
        if self.lengths is None and self.traffic.trace is None:
            flags = "--prompt-tokens, --output-tokens"
            raise wrong(
                f"a section with prompt_tokens and output_tokens ({flags}), or a file", "lengths", "nothing"
            )
        if self.arrivals.law == "trace" and self.traffic.trace is None:
            raise wrong("traffic.trace with law trace", "arrivals.law", "no trace")
        if self.arrivals.law == "trace" and self.lengths is not None:
            raise wrong("no lengths with law trace, which brings its own", "lengths", "some")
        for gpu in self.price_per_gpu_h:
            if gpu not in self.candidates.gpus and gpu not in GPUS:
                known = list(dict.fromkeys([*self.candidates.gpus, *GPUS]))
                raise wrong(
                    f"one of {', '.join(known)}", f"price_per_gpu_h.{gpu}", f"{gpu}{near(gpu, known)}"
                )
        unpriced = [gpu for gpu in self.candidates.gpus if gpu not in self.price_per_gpu_h]
        if self.rank_by == "cost" and unpriced:
            raise wrong(f"a price of {', '.join(unpriced)} to rank by cost", "price_per_gpu_h", "none")
        return self

    @property
    def place(self) -> Grid | None:
        """The grid, from its code or its intensity."""
        if self.grid is None or isinstance(self.grid, str):
            return None if self.grid is None else grid(self.grid)
        return Grid("as given", self.grid, None, "the plan")

    @property
    def criterion(self) -> str:
        """What the answer is ranked by: cost where every candidate has a price, else energy."""
        priced = all(gpu in self.price_per_gpu_h for gpu in self.candidates.gpus)
        return self.rank_by or ("cost" if priced else "energy")

    def launch(self, gpu: str, dtype: str, shards: int) -> Launch:
        """The launch of one replica of that type."""
        return Launch(
            model=self.model,
            gpu=gpu,
            dtype=dtype,
            seed=self.seed,
            scheduler=self.server.scheduler,
            max_concurrent_requests=self.server.max_concurrent_requests,
            launcher=self.server.launcher.model_copy(update={"num_shard": shards}),
        )


def _exactly_one(section: Section, keys: Sequence[str]) -> None:
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        raise wrong(f"exactly one of {', '.join(keys)}", "", " and ".join(given) or "none")
