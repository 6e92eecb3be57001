"""The energy of a window, divided among the requests it was spent on.

Whatever the method, ``sum_i e_i + unattributed = E``, no share is negative, and a
request that did nothing in the window gets nothing; both are checked on every result.
Failed requests get their share, reported apart (but not from ``mean`` and ``marginal``, which charge
the successes for them). The methods:

- ``work`` (default): the steps of the server are inferred from the records
  (`analysis.attribution.activity`); each step's idle part ``P_idle dt`` goes to its rows by how long they
  made it, its active part by how much energy they caused, both by the tariffs of
  `analysis.attribution.weights`, whose prior is physics and which the run's own step times and
  energies correct (`analysis.attribution.calibration`) where tokens have stamps.
- ``linear``: the plain weights ``c_p prefill + decode (c_w / batch + c_kv context)``, idle in equal parts.
- ``time``: equal parts to the rows of each step.
- ``regression``: as ``linear``, its weights from this run's energies alone.
- ``mean``: E / N_ok to each success. ``marginal``: (E - P_idle T) / N_ok.
  ``tokens``: busy energy by prompt plus reply tokens, what others do.

The first four are densities over time, hence additive over windows; the last three
are defined on a window as a whole. Energy is additive over boards in each.

Between readings nobody knows the power. A slice of ``slice_s`` keeps the energy that was
read; within it stretches without work draw ``P_idle``, and the rest is spread over
the steps in proportion to what the tariff expects of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import energy
from analysis.attribution.activity import Activity, activity
from analysis.attribution.calibration import Fit, calibrate, regress
from analysis.attribution.chunks import by_durations
from analysis.attribution.slices import Pieces, cut, slice_edges
from analysis.attribution.weights import Weights, linear_weights, row_terms, weights_of
from analysis.energy import Label, Part
from analysis.run import Run
from analysis.served import gpu_of
from loadgen.errors import LoadgenError
from loadgen.types import Floats

Method = Literal["work", "linear", "time", "regression", "mean", "marginal", "tokens"]
METHODS: tuple[Method, ...] = get_args(Method)
WHOLE: frozenset[Method] = frozenset({"mean", "marginal", "tokens"})
PARTS = ("idle_j", "prefill_j", "decode_j")
SLICE_S = 0.5
"""Five publications of an NVML counter: an edge that is off by one of them is a tenth of it."""
UPDATES = 5
"""A slice holds at least so many new values of the slowest series."""
CLOSED = 1e-9
"""Conservation holds to this share of the window's energy."""


class AttributionError(LoadgenError):
    """This run's energy cannot be attributed so; the message says why."""


@dataclass(frozen=True, slots=True)
class Attributed:
    """The energy of [``start_s``, ``end_s``] and whose it is.

    ``requests``: index the request id (negative: warm-up); ``status``, ``idle_j``, ``prefill_j``,
    ``decode_j``, ``total_j``. ``mean``, ``marginal`` and ``tokens`` know no phases: NaN there.
    ``unattributed_j``: when nothing ran, or what the method leaves. ``unseen``: failed requests
    of which the client got no token, so that what they cost is in the others' shares.
    """

    method: Method
    label: Label | None
    start_s: float
    end_s: float
    energy_j: float
    unattributed_j: float
    requests: pd.DataFrame
    unseen: int = 0

    def __post_init__(self) -> None:
        total = self.requests["total_j"].to_numpy(dtype=np.float64)
        slack_j = CLOSED * max(self.energy_j, 1e-9)
        if abs(total.sum() + self.unattributed_j - self.energy_j) > slack_j:
            parts = f"{total.sum()} + {self.unattributed_j} J of {self.energy_j} J"
            raise AssertionError(f"{self.method}: {parts}")
        if len(total) and min(float(total.min()), self.unattributed_j) < -slack_j:
            raise AssertionError(f"{self.method}: a share is negative")

    @property
    def failed_j(self) -> float:
        """What requests cost that did not succeed."""
        return float(self.requests.loc[self.requests["status"] != "ok", "total_j"].sum())

    @property
    def warmup_j(self) -> float:
        """What warm-ups cost in this window."""
        return float(self.requests.loc[self.requests.index < 0, "total_j"].sum())

    @property
    def phases_j(self) -> dict[str, float]:
        """``idle_j``, ``prefill_j``, ``decode_j`` of all requests; NaN where the method knows none."""
        return {name: float(self.requests[name].sum(skipna=False)) for name in PARTS}


class Attribution:
    """A run's energy as a density over its requests; `window` integrates it.

    ``part``: the boards' energy, or the host's; of the latter only ``time`` makes sense, which it
    takes. ``weights``: from elsewhere (`analysis.attribution.weights`), else by the manifest's model and
    board. ``calibrated``: whether the run's own step times and energies correct them.
    ``marks_s``: edges of windows that are to hold exactly the energy that was read between them, as the
    whole run does; between others it may differ by what one slice leaves open.
    ``fit``: what the correction or the regression found. ``idle_from``: where P_idle is from, the run's
    own baseline or, without one, the board's constant; a host's is then not told from its work.
    Raises AttributionError when the run has no energy, or no weights for the method.
    """

    def __init__(
        self,
        run: Run,
        method: Method = "work",
        *,
        part: Part = "gpu",
        weights: Weights | None = None,
        calibrated: bool = True,
        slice_s: float = SLICE_S,
        did: Activity | None = None,
        marks_s: Sequence[float] = (),
    ) -> None:
        if method not in METHODS:
            raise AttributionError(f"attribution: expected one of {', '.join(METHODS)}, got {method}")
        if run.end_s is None or run.end_s <= 0:
            raise AttributionError("attribution: nothing was done in this run")
        again = int(pd.concat([run.warmups["id"], run.requests["id"]]).duplicated().sum())
        if again:
            raise AttributionError(
                f"attribution: {again} records have the id of another: whose they are is not told"
            )
        self.method: Method = method
        self.run = run
        self.did = activity(run) if did is None else did
        measured = energy.measure(run, np.array([0.0, run.end_s]))[part]
        if measured.reason is not None:
            raise AttributionError(f"attribution: {measured.reason}")
        self.label = measured.label
        series = [run.series[board.domain] for board in measured.boards]
        curves = [energy.curve(s) for s in series]
        slowest_s = max((b.update_s or 0.0 for b in measured.boards), default=0.0)
        first_s = max(float(c.t_s[0]) for c in curves)
        last_s = min(float(c.t_s[-1]) for c in curves)
        edges_s = slice_edges(first_s, last_s, (0.0, run.end_s, *marks_s), max(slice_s, UPDATES * slowest_s))
        energy_j = np.array([np.diff(c.at(edges_s)) for c in curves])
        self._slack_s = energy.COVERED_PERIODS * max(energy.spacing_s(s, run.period_s) for s in series)
        gpu = gpu_of(run) if part == "gpu" else None
        idle_w = [min((w for w in b.idle_w if w is not None), default=None) for b in measured.boards]
        self.idle_from = "physics" if None in idle_w else "baseline"
        default_w = None if gpu is None else gpu.context_idle_w
        if part != "gpu":
            default_w = math.inf  # unknown: then the power of a slice is the same whether work runs or not
        if None in idle_w and default_w is None:
            raise AttributionError(f"attribution: idle power of the {part} unknown: the run kept no baseline")
        self.idle_w: Floats = np.array([default_w if w is None else w for w in idle_w], dtype=np.float64)
        self.fit: Fit | None = None
        self.weights: Weights | None = None
        did = self.did
        pieces = cut(did, edges_s)
        above_j = np.maximum(energy_j - self.idle_w[:, None] * np.diff(edges_s), 0.0).sum(axis=0)
        if part != "gpu" and method not in WHOLE:
            self.method = method = "time"
        expected_s, expected_j, self._idle_share, self._active_share = self._shares(
            method, weights, calibrated, pieces, above_j
        )
        self._pieces = pieces.powered(energy_j, self.idle_w, expected_s, expected_j)

    def _shares(
        self,
        method: Method,
        weights: Weights | None,
        calibrated: bool,
        pieces: Pieces,
        above_j: Floats,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Seconds and active J expected of each step (S,); each row's parts of its idle and active J (R,)."""
        did = self.did
        if method in ("time", *WHOLE):
            equal = _equal(did)
            return did.duration_s, did.duration_s, equal, equal
        if method == "regression":
            self.fit, weights = regress(did, pieces, above_j)
            self.weights = weights
            own = linear_weights(did, weights)
            return did.duration_s, did.per_step(own), _equal(did), _parts(did, own)
        weights = weights_of(self.run, float(self.idle_w.mean())) if weights is None else weights
        if weights is None:
            raise AttributionError(
                "attribution: neither the model nor the board is known: take the method time or regression, "
                "or weights from a fit"
            )
        self.did = did = by_durations(did, weights)
        self.weights = weights
        if method == "linear":
            own = linear_weights(did, weights)
            return did.duration_s, did.per_step(own), _equal(did), _parts(did, own)
        if calibrated and did.stamped:
            self.fit, weights = calibrate(did, weights, pieces, above_j)
        self.weights = weights
        charged = row_terms(did, weights)
        own = charged @ weights.active_j.array
        lasting = charged @ weights.time_s.array
        lasting_s = did.duration_s if did.stamped else did.per_step(lasting)
        return lasting_s, did.per_step(own), _parts(did, lasting), _parts(did, own)

    @property
    def span_s(self) -> tuple[float, float]:
        """The stretch that can be attributed: as far as there are readings."""
        return float(self._pieces.start_s[0]), float(self._pieces.end_s[-1])

    @property
    def pieces(self) -> Pieces:
        """The run cut at slices and steps, with their watts."""
        return self._pieces

    def window(self, start_s: float = 0.0, end_s: float | None = None) -> Attributed:
        """The shares of [start, end], run time; the whole run by default.

        Raises AttributionError for a window that readings do not cover, or a headline
        method without a success in it.
        """
        end_s = self.run.end_s if end_s is None else end_s
        assert end_s is not None
        first_s, last_s = self.span_s
        slack_s = self._slack_s
        if not first_s - slack_s <= start_s < end_s <= last_s + slack_s:
            raise AttributionError(
                f"attribution: expected a window within the readings, {first_s:.3f} to {last_s:.3f} s; "
                f"got {start_s:.3f} to {end_s:.3f} s"
            )
        did, pieces = self.did, self._pieces
        inside_s = np.clip(np.minimum(pieces.end_s, end_s) - np.maximum(pieces.start_s, start_s), 0.0, None)
        idle_j, active_j = inside_s * pieces.idle_w, inside_s * pieces.active_w
        total_j = float(idle_j.sum() + active_j.sum())
        busy = pieces.step >= 0
        nobody_j = float(idle_j[~busy].sum() + active_j[~busy].sum())
        steps, n = len(did.start_s), len(did.requests)
        step_idle_j, step_active_j = (
            np.bincount(pieces.step[busy], joules[busy], minlength=steps) for joules in (idle_j, active_j)
        )
        prefill = did.prefill_tokens > 0
        row_active_j = self._active_share * step_active_j[did.step]
        found = np.zeros((n, 3))
        found[:, 0] = np.bincount(did.request, self._idle_share * step_idle_j[did.step], minlength=n)
        found[:, 1] = np.bincount(did.request[prefill], row_active_j[prefill], minlength=n)
        found[:, 2] = np.bincount(did.request[~prefill], row_active_j[~prefill], minlength=n)
        seconds = np.bincount(pieces.step[busy], inside_s[busy], minlength=steps)
        worked = np.bincount(did.request, seconds[did.step] > 0, minlength=n) > 0
        frame = did.requests.set_index("id")[["status"]]
        if self.method in WHOLE:
            share, nobody_j = self._whole(total_j, nobody_j, end_s - start_s, worked)
            frame = frame.assign(idle_j=np.nan, prefill_j=np.nan, decode_j=np.nan, total_j=share)
        else:
            frame = frame.assign(**dict(zip(PARTS, found.T, strict=True)), total_j=found.sum(axis=1))
        sent = did.requests["status"].isin(("error", "timeout", "cancelled")) & ~did.requests["seen"]
        return Attributed(
            self.method, self.label, start_s, end_s, total_j, nobody_j, frame[worked], int(sent.sum())
        )

    def windows(self, edges_s: Sequence[float] | Floats) -> list[Attributed]:
        """The shares of each of the windows between consecutive edges: stages, slices."""
        return [self.window(float(a), float(b)) for a, b in pairwise(edges_s)]

    def _whole(
        self, total_j: float, nobody_j: float, length_s: float, worked: npt.NDArray[np.bool_]
    ) -> tuple[Floats, float]:
        """Each request's joules (N,) by a method that knows no time, and what it leaves."""
        did = self.did
        if self.method == "tokens":
            tokens = np.bincount(
                did.request, did.prefill_tokens + did.decode_tokens, minlength=len(did.requests)
            )
            key, left_j = tokens * worked, nobody_j
        else:
            key = ((did.requests["status"] == "ok").to_numpy() & worked).astype(np.float64)
            idle_j = min(float(self.idle_w.sum()) * length_s, total_j)
            left_j = idle_j if self.method == "marginal" else 0.0
        if not key.sum():
            raise AttributionError(f"attribution: {self.method}: nothing succeeded in this window")
        return (total_j - left_j) * key / key.sum(), left_j


def _equal(did: Activity) -> Floats:
    """Equal parts to the rows of each step, (R,)."""
    return _parts(did, np.ones(len(did.step)))


def _parts(did: Activity, weight: Floats) -> Floats:
    """Each row's part of its step, (R,): by weight, in equal parts where nothing weighs."""
    total = did.per_step(weight)[did.step]
    rows = did.per_step(np.ones(len(weight)))[did.step]
    parts: Floats = np.where(total > 0, weight / np.where(total > 0, total, 1.0), 1.0 / np.maximum(rows, 1.0))
    return parts
