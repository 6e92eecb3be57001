"""The shaping section of a load: when demand is released. Keys in docs/scenarios.md."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loadgen.section import Count, Positive, Section, wrong
from loadgen.shaping import Gate, NoShaping, Throttle, TokenBucket
from loadgen.types import ShapingPolicy

# What each policy needs, and what it takes besides.
_NEEDED = {
    "none": {},
    "gate": {"interval_s": "a number of seconds between openings of the gate"},
    "token_bucket": {
        "rate_rps": "a number of requests per second that the bucket is refilled with",
        "burst": "a number of requests >= 1 that a full bucket lets through at once",
    },
    "throttle": {
        "rate_limit": "a whole number of requests that may start within a period",
        "period_s": "a number of seconds",
    },
}
_TAKEN = {"throttle": ("retry_interval_s",)}


class Shaping(Section):
    """When demand is released: at once, at a gate, by tokens, or as asyncio-throttle does.

    With policy ``none`` keys of the others may stand: it switches them off.
    """

    policy: Literal["none", "gate", "token_bucket", "throttle"] = "none"
    interval_s: Positive | None = None
    rate_rps: Positive | None = None
    burst: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    rate_limit: Count | None = None
    period_s: Positive | None = None
    retry_interval_s: Positive | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = _NEEDED[self.policy]
        for key, expected in needed.items():
            if getattr(self, key) is None:
                raise wrong(expected, key, "nothing")
        own = (*needed, *_TAKEN.get(self.policy, ()))
        for key in type(self).model_fields:
            value = getattr(self, key)
            if own and key != "policy" and key not in own and value is not None:
                raise wrong(f"none: policy {self.policy} has {', '.join(own)}", key, f"{value:g}")
        return self

    def shaper(self) -> ShapingPolicy:
        """The shaping policy these keys describe."""
        if self.policy == "gate" and self.interval_s is not None:
            return Gate(self.interval_s)
        if self.policy == "token_bucket" and self.rate_rps is not None and self.burst is not None:
            return TokenBucket(self.rate_rps, self.burst)
        if self.policy == "throttle" and self.rate_limit is not None and self.period_s is not None:
            retry_s = 0.01 if self.retry_interval_s is None else self.retry_interval_s
            return Throttle(self.rate_limit, self.period_s, retry_s)
        return NoShaping()
