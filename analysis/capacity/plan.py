"""The plan of a capacity question: its keys, checked, from YAML or flags; one line for every mistake."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

import loadgen
from analysis.macro import GRIDS, Grid, grid
from loadgen.config import Place, Tree, explain, near, parse_value, read_yaml
from loadgen.errors import ConfigError
from loadgen.launch import DEFAULT_MODEL, Launch, Launcher, Scheduler
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS, read_config
from loadgen.section import Count, NotNegative, Positive, Section, wrong

HOURS = 24
Names = Annotated[list[str], Field(min_length=1)]
_DAY = Annotated[list[NotNegative], Field(min_length=HOURS, max_length=HOURS)]


class Traffic(Section):
    """How many requests are wanted when: one rate, 24 hourly rates, a day's mean and peak, or a trace.

    ``peak_to_mean`` above 1 makes a day of one peak at ``peak_hour`` (see `workload.day_rates`).
    ``trace``: an Azure, Mooncake or BurstGPT trace, its rates times ``scale``, over bins of ``bin_s``.
    """

    rate_rps: Positive | None = None
    day: _DAY | None = None
    mean_rps: Positive | None = None
    peak_to_mean: Annotated[float, Field(ge=1, le=12)] = 1.0
    peak_hour: Annotated[int, Field(ge=0, lt=HOURS)] = 14
    trace: Path | None = Field(None, strict=False)
    bin_s: Positive | None = None
    scale: Positive = 1.0

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

    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_cv: Annotated[float, Field(ge=0, le=10)] = 0.0
    output_cv: Annotated[float, Field(ge=0, le=10)] = 0.0
    jsonl: Path | None = Field(None, strict=False)
    sharegpt: Path | None = Field(None, strict=False)
    trace: Path | None = Field(None, strict=False)
    max_new_tokens: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, ("prompt_tokens", "jsonl", "sharegpt", "trace"))
        if (self.prompt_tokens is None) != (self.output_tokens is None):
            missing = "output_tokens" if self.output_tokens is None else "prompt_tokens"
            raise wrong("prompt_tokens and output_tokens together", missing, "nothing")
        return self


class Slo(Section):
    """Limits that a good request keeps, all at once, in seconds from its demand; the share that must.

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
    grid: str | NotNegative | None = None
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
        if isinstance(self.grid, str) and self.grid not in GRIDS:
            raise wrong(f"g CO2e per kWh, or one of {', '.join(GRIDS)}", "grid", self.grid)
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


def find_plan(path: Path) -> Path:
    """The file, or the shipped plan of that name. Raises ConfigError naming the near shipped plan."""
    if path.is_file():
        return path
    package = Path(loadgen.__file__).resolve().parent
    folders = (package / "_scenarios" / "capacity", package.parent / "scenarios" / "capacity")
    shipped = {file.name: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    for name in (path.name, f"{path.name}.yaml"):
        if name in shipped:
            return shipped[name]
    known = ", ".join(shipped)
    raise ConfigError(
        f"{path}: no such file, and no shipped plan{near(path.name, shipped)} (shipped: {known})"
    )


PRICE, PRICE_FLAG = "price_per_gpu_h", "--price"
_INSTEAD = {
    "traffic.rate_rps": {"traffic": [k for k in Traffic.model_fields if k != "rate_rps"]},
    "lengths.prompt_tokens": {"lengths": ["jsonl", "sharegpt", "trace"]},
    "lengths.output_tokens": {"lengths": ["jsonl", "sharegpt", "trace"]},
}
_PATHS = ("traffic.trace", "lengths.jsonl", "lengths.sharegpt", "lengths.trace")


def read_plan(path: Path | None, given: Sequence[tuple[str, str, str]] = ()) -> CapacityPlan:
    """The plan of a file, or of nothing, with values put over it. Raises ConfigError, a line a mistake.

    ``given``: (dotted key, value as YAML, the flag it is from); of `PRICE_FLAG` the value is GPU=X. A rate or
    a length replaces the file's traffic or lengths. Relative paths count from the file, a flag's from
    the working directory.
    """
    path = None if path is None else find_plan(path)
    tree = Tree({}, source="plan") if path is None else read_yaml(path)
    for dotted, _, _ in given:
        for section, keys in _INSTEAD.get(dotted, {}).items():
            tree.drop(section, *keys)
    for dotted, text, flag in given:
        if flag == PRICE_FLAG:
            _price(tree, text, flag)
            continue
        tree.assign(dotted, parse_value(text, flag), flag)
    _resolve(tree, Path() if path is None else path.parent)
    try:
        plan = CapacityPlan.model_validate(tree.data)
    except ValidationError as exc:
        lines = explain(exc.errors(include_url=False), tree, keys_at, frozenset())
        raise ConfigError("\n".join(lines)) from None
    if plan.model not in MODELS:
        model = Path(plan.model)
        read_config(
            model / "config.json" if model.is_dir() else model
        )  # refused here, not by every candidate
    return plan


def keys_at(place: Place) -> Mapping[str, str]:
    """The keys allowed at a place of the file, each with what it expects; {} where anything goes."""
    model: type[Section] | None = CapacityPlan
    for key in place:
        field = None if model is None else model.model_fields.get(str(key))
        model = None if field is None else _section(field.annotation)
    if model is None:
        return {}
    return {name: _EXPECTED.get(name, "a value") for name in model.model_fields}


_EXPECTED = {
    "traffic": "a section with rate_rps, day, mean_rps or trace (--rate)",
    "slo": "a section with ttft_s, tpot_s or e2e_s (--ttft, --tpot, --e2e)",
}


def _section(annotation: Any) -> type[Section] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _price(tree: Tree, text: str, flag: str) -> None:
    """Sets the price of a board, whose name may be a path with dots."""
    gpu, _, price = text.rpartition("=")
    prices = tree.data.setdefault(PRICE, {})
    if not isinstance(prices, dict):
        raise ConfigError(f"{tree.origin((PRICE,))} {PRICE}: expected a mapping of boards to prices")
    prices[gpu] = parse_value(price, flag)
    tree.origins[PRICE, gpu] = flag


def _resolve(tree: Tree, base: Path) -> None:
    model = tree.data.get("model")
    if isinstance(model, str) and model not in MODELS and not tree.origin(("model",)).startswith("--"):
        tree.data["model"] = str(base / model) if (base / model).exists() else model
    for dotted in _PATHS:
        value = tree.get(dotted)
        if isinstance(value, str):
            origin = tree.origin(tuple(dotted.split(".")))
            path = Path(value).expanduser()
            if not path.is_absolute() and not origin.startswith("--"):
                path = base / path
            if not path.is_file():
                raise ConfigError(f"{origin} {dotted}: expected an existing file, got {value}")
            section, key = dotted.split(".")
            tree.data[section][key] = str(path)
