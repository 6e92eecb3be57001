"""The central types: what is planned, what happened, what was read, what is claimed.

All are frozen and slotted. Units are in the names. An instant (``*_s`` that is
not a duration) is in seconds from the first measured due time, so warm-up and
baseline instants are negative; inside the runner, before that zero is known, the
same fields hold ``clock.now()`` values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

Kind = Literal["text", "video"]
Phase = Literal["warmup", "prefill", "full", "measure"]
Overflow = Literal["queue", "drop"]
Status = Literal["ok", "error", "timeout", "rejected", "cancelled", "dropped"]
TokensFrom = Literal["server", "chunks", "planned"]
Method = Literal["counter", "instant", "average", "estimated", "simulated"]
Floats = npt.NDArray[np.float64]

STATUSES: tuple[Status, ...] = ("ok", "error", "timeout", "rejected", "cancelled", "dropped")


@dataclass(frozen=True, slots=True)
class Request:
    """One unit of work, before any protocol has been chosen.

    ``body`` of a text request holds exactly one of ``messages`` (a list of
    ``{"role", "content"}``) and ``prompt`` (a string), and may hold
    ``max_new_tokens`` (int), ``output_tokens`` (int, the reply length a source
    knows; then ``max_new_tokens`` equals it), ``prompt_tokens`` (int, the
    source's count or estimate) and ``source_id`` (str). Ids are unique in a
    plan: measured requests count up from 0, warm-up requests are negative.
    """

    id: int
    kind: Kind
    body: Mapping[str, Any]
    phase: Phase = "measure"
    block: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request is wanted and when it is released.

    ``demand_s``: the instant the user asked; ``due_s >= demand_s``: the instant
    the shaping policy releases it (equal without shaping). A dependent turn has
    ``after = (id, think_s)`` and falls due ``think_s`` after that request ends.
    """

    due_s: float
    demand_s: float
    request: Request
    after: tuple[int, float] | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The complete schedule, sorted by due time, ids unique.

    A closed loop is a plan whose due times are all 0 with ``max_in_flight``
    set; ``closed`` marks it, since its records take ``due_s = sent_s``.
    """

    arrivals: tuple[Arrival, ...]
    max_in_flight: int | None
    overflow: Overflow
    seed: int
    closed: bool = False

    def __post_init__(self) -> None:
        ids = {a.request.id for a in self.arrivals}
        if len(ids) != len(self.arrivals):
            raise ValueError("plan: request ids are not unique")
        if any(b.due_s < a.due_s for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)):
            raise ValueError("plan: arrivals are not sorted by due_s")
        if any(a.due_s < a.demand_s for a in self.arrivals):
            raise ValueError("plan: an arrival is due before it is demanded")

    def shard(self, k: int, n: int) -> Plan:
        """The k-th of n parts; their union is the plan (round robin by position)."""
        if not 0 <= k < n:
            raise ValueError(f"shard: expected 0 <= k < n, got k={k}, n={n}")
        return Plan(self.arrivals[k::n], self.max_in_flight, self.overflow, self.seed, self.closed)


@dataclass(slots=True)
class Tape:
    """What one exchange left behind: each socket read with the runner's stamp.

    ``stamps[i]`` is the ``clock.now()`` at which the response body had grown to
    ``sizes[i]`` bytes; ``data`` is the whole body (transfer coding removed) and
    is set once the response has ended, normally or not. Nothing here is decoded.
    """

    stamps: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    data: bytes = b""
    http_status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    """True when the transfer coding itself ended properly."""

    def mark(self, stamp_s: float, size_bytes: int) -> None:
        """Notes that by ``stamp_s`` (clock.now) the body holds ``size_bytes``."""
        self.stamps.append(stamp_s)
        self.sizes.append(size_bytes)


@dataclass(frozen=True, slots=True)
class Reply:
    """What decoding a tape gives. Pure function of the tape; no clock.

    ``chunk_reads[i]`` is the index into ``tape.stamps`` of the read that
    completed the i-th group of token events, ``chunk_tokens[i]`` its tokens.
    ``error`` is None exactly when a finish event was seen and nothing failed;
    ``rejected`` says that the error is overload (HTTP 429 or in-stream).
    """

    text: str
    chunk_reads: tuple[int, ...]
    chunk_tokens: tuple[int, ...]
    prompt_tokens: int | None
    output_tokens: int | None
    tokens_from: TokensFrom | None
    finish_reason: str | None
    server_times: Mapping[str, float]
    error: str | None
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one planned request. Exactly one per arrival.

    demand <= due <= sent <= first <= done, all instants. ``sent_s`` is stamped
    before connecting (None when never sent). ``first_s`` is the read that
    completes the first token event. ``chunk_s[i]`` is the read at which
    ``chunk_tokens[i]`` further tokens had arrived.
    """

    id: int
    phase: Phase
    block: int
    demand_s: float
    due_s: float
    sent_s: float | None
    first_s: float | None
    done_s: float | None
    chunk_s: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    prompt_tokens: int | None
    output_tokens: int | None
    tokens_from: TokensFrom | None
    finish_reason: str | None
    http_status: int | None
    server_times: Mapping[str, float]
    status: Status
    error: str | None
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """One thing whose energy or power is read, and how.

    Names: ``gpu0`` (energy counter), ``gpu0.instant`` and ``gpu0.average``
    (power), ``cpu0.package``, ``ram``; of several hosts, ``host/gpu0``.
    ``averaging_s`` is the sensor's window, ``update_s`` how often it publishes a
    new value (documented or measured; None: unknown, or continuous). ``note`` says
    where an estimate or a simulation comes from.
    """

    name: str
    method: Method
    averaging_s: float | None = None
    note: str = ""
    update_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample: instantaneous-or-averaged power XOR cumulative energy."""

    t_s: float
    domain: str
    power_w: float | None = None
    energy_j: float | None = None

    def __post_init__(self) -> None:
        if (self.power_w is None) == (self.energy_j is None):
            raise ValueError(f"reading of {self.domain}: expected power_w or energy_j, not both")


@dataclass(frozen=True, slots=True)
class BoardState:
    """What a board's clocks and limits were at ``t_s``; None where the board does not tell.

    ``domain``: ``gpu0``. ``event_reasons``: NVML's bit mask of reasons that lower
    the clocks. ``ecc_errors``: uncorrected ones since the driver was loaded.
    """

    t_s: float
    domain: str
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    pstate: int | None = None
    event_reasons: int | None = None
    ecc_errors: int | None = None


@dataclass(frozen=True, slots=True)
class BoardProcess:
    """A process with a compute context on a board; None for what the driver does not tell."""

    pid: int
    name: str | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class ServerSample:
    """The server's own metrics at ``t_s``; None where it does not tell.

    ``running`` and ``waiting``: requests now. The rest counts from the server's
    start: tokens prefilled or found in the cache (``prompt_tokens``), generated,
    of the prompts' found in the prefix cache, and preempted requests.
    """

    t_s: float
    running: float | None = None
    waiting: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    cached_tokens: float | None = None
    preemptions: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the embedded engine, or an idle stretch (no sequences).

    ``sequences`` rows are ``(request id, prefill tokens, decode tokens, context
    tokens before the step)``. ``energy_j`` is the board's energy over the step.
    """

    start_s: float
    duration_s: float
    energy_j: float
    sequences: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number fit for a report: value, unit, interval at ``level``, n, method."""

    value: float | None
    unit: str
    low: float | None
    high: float | None
    level: float
    n: int
    method: str


class ArrivalProcess(Protocol):
    """A law of arrival times."""

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        """The first n arrival instants, shape (n,), seconds, sorted, from about 0."""
        ...


class ShapingPolicy(Protocol):
    """Turns demand into release times, causally."""

    def release(self, demand_s: Floats) -> Floats:
        """due_s, shape (n,), sorted, ``due >= demand`` elementwise."""
        ...


class PromptSource(Protocol):
    """Where request bodies come from."""

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        """Requests with ids 0, 1, 2, ...; may be finite."""
        ...


class Client(Protocol):
    """One protocol over one transport."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def exchange(self, request: Request, tape: Tape) -> None:
        """Sends the request and fills the tape as the response arrives.

        Raises loadgen.errors.ExchangeError for a transport failure; the tape
        then holds what had arrived. An HTTP error status is not a failure here.
        """
        ...

    def decode(self, tape: Tape) -> Reply:
        """The tape's meaning. Never raises for bad bytes: it says so in ``error``."""
        ...


class PowerSource(Protocol):
    """Something that knows power or energy now."""

    def domains(self) -> Sequence[Domain]: ...

    def read(self) -> list[Reading]: ...

    def close(self) -> None: ...
