"""The load section of a scenario: one class a pattern, its keys checked. Keys in docs/scenarios.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from loadgen.arrivals import (
    AllAtOnce,
    ClosedLoop,
    Constant,
    Dwell,
    Gamma,
    Law,
    OnOff,
    Poisson,
    Ramp,
    Sine,
    Stage,
    Steps,
    Uniform,
    UniformLiteral,
    UniformScript,
)
from loadgen.scenario_shaping import Shaping
from loadgen.section import Count, NotNegative, Positive, Section, Share, wrong
from loadgen.types import ArrivalProcess, Overflow

MOST_REQUESTS = 10_000_000  # the whole plan is in memory before the first byte

Requests = Annotated[int, Field(gt=0, le=MOST_REQUESTS)]


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
        _check_order(self.low_s, self.high_s)
        return self

    def process(self) -> ArrivalProcess:
        law = Uniform if self.pattern == "uniform" else UniformScript
        return law(self.low_s, self.high_s)


def _check_order(low_s: float, high_s: float) -> None:
    if high_s < low_s:
        raise wrong(f">= low_s ({low_s})", "high_s", str(high_s))


class UniformLiteralLoad(Load):
    """Request i at i * U(low_s, high_s): the study's sentence as it stands. Planned by its count."""

    pattern: Literal["uniform_literal"]
    requests: Requests
    low_s: NotNegative
    high_s: Positive

    @model_validator(mode="after")
    def _countable(self) -> Self:
        _check_order(self.low_s, self.high_s)
        if self.duration_s is not None:
            expected = "none: how many arrive in a time depends on how many there are, so give requests"
            raise wrong(expected, "duration_s", f"{self.duration_s:g}")
        return self

    def process(self) -> ArrivalProcess:
        return UniformLiteral(self.low_s, self.high_s)


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
    law: Law = "constant"

    @property
    def bounded(self) -> bool:
        return True

    def process(self) -> ArrivalProcess:
        return Steps(tuple(Stage(s.rate_rps, s.duration_s) for s in self.stages), self.law)


class RampLoad(Load):
    """A rate that goes straight from start_rps to end_rps within duration_s, and ends."""

    pattern: Literal["ramp"]
    start_rps: NotNegative
    end_rps: NotNegative
    duration_s: Positive
    law: Law = "constant"

    @model_validator(mode="after")
    def _some_rate(self) -> Self:
        if self.start_rps == self.end_rps == 0:
            raise wrong("> 0 where start_rps is 0", "end_rps", "0")
        return self

    def process(self) -> ArrivalProcess:
        return Ramp(self.start_rps, self.end_rps, self.duration_s, self.law)


class SineLoad(Load):
    """A day: a rate that swings around mean_rps by the share ``amplitude``, once every period_s."""

    pattern: Literal["sine"]
    mean_rps: Positive
    amplitude: Share
    period_s: Positive
    phase_rad: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    law: Law = "constant"

    def process(self) -> ArrivalProcess:
        return Sine(self.mean_rps, self.amplitude, self.period_s, self.phase_rad, self.law)


class OnOffLoad(Load):
    """rate_rps for an on time, off_rate_rps for an off time, in turns; starts on."""

    pattern: Literal["on_off"]
    rate_rps: Positive
    on_s: Positive
    off_s: Positive
    off_rate_rps: NotNegative = 0.0
    dwell: Dwell = "constant"
    law: Law = "constant"

    @model_validator(mode="after")
    def _some_requests_a_cycle(self) -> Self:
        per_cycle = self.process().per_cycle
        if self.dwell == "exponential" and per_cycle < 0.001:
            expected = "at least 0.001 requests in an on and an off time together (every dwell is drawn)"
            raise wrong(expected, "on_s", f"{per_cycle:g}")
        return self

    def process(self) -> OnOff:
        return OnOff(self.rate_rps, self.on_s, self.off_s, self.off_rate_rps, self.dwell, self.law)


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
    """Recorded arrival times: scaled in time, thinned by a seeded keep-fraction, cut."""

    pattern: Literal["trace"]
    path: Path = Field(strict=False)
    time_scale: Positive = 1.0
    thin: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def bounded(self) -> bool:
        return True


# The extension point: a pattern is one class here that builds one object of loadgen.arrivals.
# Classes, not "module:Class" text: validation needs them anyway.
LOADS: dict[str, type[Load]] = {
    "constant": ConstantLoad,
    "uniform": UniformLoad,
    "uniform_script": UniformLoad,
    "uniform_literal": UniformLiteralLoad,
    "poisson": PoissonLoad,
    "gamma": GammaLoad,
    "steps": StepsLoad,
    "ramp": RampLoad,
    "sine": SineLoad,
    "on_off": OnOffLoad,
    "all_at_once": BurstLoad,
    "closed_loop": ClosedLoad,
    "trace": TraceLoad,
}

AnyLoad = Annotated[
    ConstantLoad
    | UniformLoad
    | UniformLiteralLoad
    | PoissonLoad
    | GammaLoad
    | StepsLoad
    | RampLoad
    | SineLoad
    | OnOffLoad
    | BurstLoad
    | ClosedLoad
    | TraceLoad,
    Field(discriminator="pattern"),
]
