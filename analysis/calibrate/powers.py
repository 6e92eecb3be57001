"""Power constants from the energies of slices of time.

    E_k = sum_i dt_ik (P_act + (TDP - P_act) min(1, a u_m,i + c (1 - exp(-u_c,i / u0)))) + P_idle dt_k0

dt_ik: how long step i lasted within slice k, dt_k0 what is left of it without work (the baselines are
part of it); u_m, u_c: traffic and arithmetic of a step over the peaks and over the time it took. One board's
share where several serve together, alike. Slices begin and end where a value was published. When that
was is known to a part of an update: from the comb of all publications (`analysis.energy.publication`),
or, where a counter is read as often as it is published, by one lag for all readings; the one that leaves
less is taken, and with it one shift a run. What a sensor reads is taken as it is: its gain stays
in the constants. Where the board may hold a raised power after work (`Gpu.tail_s`), slices that rest
so soon after it are left out: what it draws then is neither of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import energy
from analysis.attribution.slices import Pieces, cut
from analysis.calibrate.estimate import Answer, Question, answer
from analysis.calibrate.observed import Bools, Ints, Observed
from analysis.energy.publication import is_continuous, publications
from analysis.fit.estimate import Matrix
from analysis.run import Series
from loadgen.physics.hardware import Gpu
from loadgen.types import Floats

NAMES = ("context_idle_w", "active_w", "memory_weight", "compute_weight", "compute_knee")
"""In order of preference: of two that the runs cannot tell apart the first is fitted."""
SLICE_S = 0.5
MOST_SLICES = 20_000
FEWEST = 20
BLOCK = 8
"""Slices in a row that go together."""
_SHIFTS, _FINER = 8, 3
"""Shifts that are tried to either side of none within an update, then around the best of them."""
_KNEES = 1.6
_ROUNDS = 2
_FAR_S = 5e-3
_CLOSE_S = 1e-3
"""Over so long a shift moves energies in proportion."""
_ANY = 1e9
_RESTING = 0.01
"""Of a slice, at rest in the tail of work, before it is left out."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices with energy of one run, (K,): joules of one board, and the steps' parts in them.

    ``slice``, ``step``, ``length_s``: (M,), pieces with work. ``idle_s``: (K,). ``memory``, ``compute``:
    (S,), utilisations of the steps. ``kind``: (K,), cells of busy share and utilisations.
    """

    energy_j: Floats
    width_s: Floats
    idle_s: Floats
    slice: Ints
    step: Ints
    length_s: Floats
    memory: Floats
    compute: Floats
    kind: Ints

    def law(self, x: Floats, tdp_w: float) -> tuple[Floats, Matrix]:
        """Joules and their derivatives by the constants in the order of `NAMES`."""
        idle_w, active_w, a, c, knee = x.tolist()
        spent = np.exp(-self.compute / knee)
        load = a * self.memory + c * (1.0 - spent)
        open_ = load < 1.0
        load = np.minimum(load, 1.0)
        room_w = tdp_w - active_w
        of_step = [
            active_w + room_w * load,
            1.0 - load,
            open_ * room_w * self.memory,
            open_ * room_w * (1.0 - spent),
            open_ * room_w * -c * spent * self.compute / knee**2,
        ]
        sums = [self._summed(column) for column in of_step]
        return sums[0] + idle_w * self.idle_s, np.stack([self.idle_s, *sums[1:]], axis=1)

    def regressors(self, knees: Sequence[float]) -> Matrix:
        """Idle and busy seconds, traffic, and the saturating term at each knee, (K, 3 + knees)."""
        saturating = [1.0 - np.exp(-self.compute / knee) for knee in knees]
        busy = [self._summed(c) for c in (np.ones(len(self.memory)), self.memory, *saturating)]
        return np.stack([self.idle_s, *busy], axis=1)

    def some(self, which: Bools) -> Slices:
        """Those of ``which``, (K,)."""
        used = which[self.slice]
        place = np.cumsum(which) - 1
        return Slices(
            self.energy_j[which],
            self.width_s[which],
            self.idle_s[which],
            place[self.slice[used]],
            self.step[used],
            self.length_s[used],
            self.memory,
            self.compute,
            self.kind[which],
        )

    def _summed(self, of_step: Floats) -> Floats:
        of_piece = self.length_s * of_step[self.step]
        found: Floats = np.bincount(self.slice, of_piece, len(self.energy_j)).astype(np.float64)
        return found


@dataclass(frozen=True, slots=True)
class Energies:
    """One run's boards as published, and what is needed to cut slices anywhere."""

    seen: Observed
    edges_s: Floats
    board_j: Floats
    reach_s: float

    @property
    def enough(self) -> bool:
        """Whether there are slices to fit to."""
        return len(self.at(0.0).energy_j) >= FEWEST

    def at(self, shift_s: float) -> Slices:
        """The slices if everything had been published so much later."""
        did, work = self.seen.did, self.seen.work
        edges_s = self.edges_s + shift_s
        pieces = cut(did, edges_s)
        keep = ~_touched(pieces, self.seen.clear) & ~_in_tail(pieces, did.end_s, self.seen.subject.base.gpu)
        busy = pieces.step >= 0
        memory, compute = (
            np.where(did.duration_s > 0, t / np.where(did.duration_s > 0, did.duration_s, 1.0), 0.0)
            for t in (work.traffic_s, work.flop_s)
        )
        place = np.cumsum(keep) - 1
        used = busy & keep[pieces.slice]
        width_s = np.diff(edges_s)
        busy_s = np.bincount(pieces.slice, pieces.length_s * busy, len(width_s))
        cells = [busy_s, pieces.per_slice(work.traffic_s), pieces.per_slice(work.flop_s)]
        kind = np.unique(
            np.stack([np.floor(4.0 * c / width_s + 0.5) for c in cells], axis=1)[keep],
            axis=0,
            return_inverse=True,
        )[1].reshape(-1)
        return Slices(
            self.board_j[keep],
            width_s[keep],
            (width_s - busy_s)[keep],
            place[pieces.slice[used]],
            pieces.step[used],
            pieces.length_s[used],
            memory,
            compute,
            kind,
        )


def energies_of(seen: Observed) -> tuple[Energies, ...] | str:
    """The run's energies, cut where they may have been published; or why there are none."""
    run = seen.run
    if run.end_s is None or not run.series:
        return str(run.power.get("reason") or "no power was read")
    part = energy.measure(run, np.array([0.0, run.end_s]))["gpu"]
    if not part.boards:
        return part.reason or "no board was read"
    unread = [b.reason for b in part.boards if b.reason is not None]
    if unread:
        return unread[0]
    series = [run.series[b.domain] for b in part.boards]
    if len(series) != seen.subject.shards:
        return f"{len(series)} boards were read and {seen.subject.shards} served"
    found = tuple(e for e in (cut_at(seen, series) for cut_at in (_published, _read)) if e and e.enough)
    return found or f"fewer than {FEWEST} slices of energy"


def questions(base: Gpu) -> list[Question]:
    """The constants with the table's values."""
    return [Question(name, float(getattr(base, name)), base.uncertainty[name]) for name in NAMES]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The constants (`NAMES`), the slices they were fitted to, and each run's shift in seconds."""

    answer: Answer
    slices: tuple[Slices, ...]
    shifts_s: tuple[float, ...]


def fit_powers(runs: Sequence[tuple[Energies, ...]], base: Gpu) -> Fitted:
    """Fits the constants to all runs, each cut and shifted as leaves least."""
    best = [min((_shifted(e, base) for e in ways), key=lambda tried: tried[0]) for ways in runs]
    chosen, shifts_s = [run for _, _, run in best], np.array([shift_s for _, shift_s, _ in best])
    for _ in range(_ROUNDS):
        told, moved_s = _fit(chosen, shifts_s.tolist(), base)
        shifts_s = shifts_s + np.clip(moved_s, -_FAR_S, _FAR_S)
    told, _ = _fit(chosen, shifts_s.tolist(), base)
    slices = tuple(run.at(shift_s) for run, shift_s in zip(chosen, shifts_s.tolist(), strict=True))
    return Fitted(told, slices, tuple(shifts_s.tolist()))


def _fit(runs: Sequence[Energies], shifts_s: Sequence[float], base: Gpu) -> tuple[Answer, Floats]:
    """The constants, and how much later still each run's values are best taken to be published."""
    slices = [run.at(shift_s) for run, shift_s in zip(runs, shifts_s, strict=True)]
    later = [run.at(shift_s + _CLOSE_S) for run, shift_s in zip(runs, shifts_s, strict=True)]
    return fit_slices(slices, base, later)


def fit_slices(slices: Sequence[Slices], base: Gpu, later: Sequence[Slices] = ()) -> tuple[Answer, Floats]:
    """The constants from slices of several runs.

    ``later``: the same cut `_CLOSE_S` later, where the shift of each run is to be fitted too; by how
    much is the second value, seconds, (runs,).
    """
    asked, m = questions(base), len(NAMES)
    # A shift is asked for as a constant near 1, of which 1 is taken.
    asked += [Question(f"shift of run {k}", 1.0, _ANY) for k in range(len(later))]
    ends = np.cumsum([len(s.energy_j) for s in slices])

    def law(x: Floats) -> tuple[Floats, Matrix]:
        parts = [s.law(x[:m], base.tdp_w) for s in slices]
        y, jacobian = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        columns = np.zeros((len(y), len(later)))
        for k, moved in enumerate(later):
            there = moved.law(x[:m], base.tdp_w)[0]
            if len(there) == len(parts[k][0]):
                columns[ends[k] - len(there) : ends[k], k] = there - parts[k][0]
        return y + columns @ (x[m:] - 1.0), np.concatenate([jacobian, columns], axis=1)

    y = np.concatenate([s.energy_j for s in slices])
    blocks, kinds, first_block, first_kind = [], [], 0, 0
    for s in slices:
        blocks.append(np.arange(len(s.energy_j)) // BLOCK + first_block)
        kinds.append(s.kind + first_kind)
        first_block, first_kind = int(blocks[-1].max()) + 1, int(kinds[-1].max()) + 1
    found = answer(law, y, asked, (np.concatenate(blocks), np.concatenate(kinds)), relative=False)
    told = replace(
        found,
        value=found.value[:m],
        half=found.half[:m],
        told=found.told[:m],
        kept={name: why for name, why in found.kept.items() if name in NAMES},
        tangled=tuple(group for group in found.tangled if set(group) <= set(NAMES)),
    )
    return told, (found.value[m:] - 1.0) * _CLOSE_S


def _shifted(run: Energies, base: Gpu) -> tuple[float, float, Energies]:
    """What is left at the shift, within an update either way, that leaves least; that shift; the run.

    Left by least squares on idle and busy time, traffic and the saturating term at two knees: no
    constant of the table's is taken for granted, as a wrong one would pull the shift.
    """

    def left(shift_s: float) -> float:
        slices = run.at(shift_s)
        x = slices.regressors((base.compute_knee / _KNEES, base.compute_knee * _KNEES))
        found = np.linalg.lstsq(x, slices.energy_j, rcond=1e-9)[0]
        return float(np.mean(np.abs(slices.energy_j - x @ found) / slices.width_s))

    best_s, step_s = 0.0, run.reach_s / _SHIFTS
    for _ in range(_FINER):
        tried = [best_s + k * step_s for k in range(-_SHIFTS, _SHIFTS + 1)]
        best_s, step_s = min(tried, key=left), step_s / _SHIFTS
    return left(best_s), best_s, run


def _published(seen: Observed, series: Sequence[Series]) -> Energies | None:
    """Cut at the instants at which the first board's values were published."""
    first = series[0]
    if first.cumulative and not is_continuous(first.t_s, first.value, first.domain.update_s):
        at_s, _ = publications(first.t_s, first.value, first.domain.update_s)
    else:
        at_s = energy.curve(first).t_s
    if len(at_s) < FEWEST:
        return None
    some, reach_s = _edges(at_s, first)
    board_j = np.sum([np.diff(energy.curve(s).at(at_s[some])) for s in series], axis=0) / len(series)
    return Energies(seen, at_s[some], board_j, reach_s)


def _read(seen: Observed, series: Sequence[Series]) -> Energies | None:
    """Cut at the readings that first showed a new value of the first board's counter."""
    first = series[0]
    if not all(s.cumulative for s in series) or len(first.t_s) < FEWEST:
        return None
    at_s = first.t_s[1:][np.diff(first.value) > 0]
    if len(at_s) < FEWEST:
        return None
    some, reach_s = _edges(at_s, first)
    shown = [s.value[np.searchsorted(s.t_s, at_s[some], side="right") - 1] for s in series]
    return Energies(seen, at_s[some], np.sum([np.diff(v) for v in shown], axis=0) / len(series), reach_s)


def _edges(at_s: Floats, series: Series) -> tuple[Ints, float]:
    """Which of the instants to cut at, `SLICE_S` apart or more, and how sure each is."""
    update_s = series.domain.update_s or 0.0
    length_s = max(SLICE_S, 2.0 * update_s, float(at_s[-1] - at_s[0]) / MOST_SLICES)
    some = np.unique(np.searchsorted(at_s, np.arange(at_s[1], at_s[-1], length_s)))
    return some.astype(np.int64), max(update_s, float(np.median(np.diff(at_s))))


def _touched(pieces: Pieces, clear: Bools) -> Bools:
    """Slices, (K,), with a part of a step of which not everything was seen."""
    unclear = (pieces.step >= 0) & ~clear[pieces.step]
    found: Bools = np.bincount(pieces.slice, unclear, len(pieces.edges_s) - 1) > 0
    return found


def _in_tail(pieces: Pieces, ends_s: Floats, gpu: Gpu) -> Bools:
    """Slices, (K,), that rest where the board may still be in its tail, of earlier work than was seen too."""
    edges_s = pieces.edges_s
    last = np.searchsorted(ends_s, pieces.start_s + 1e-9, side="right") - 1
    since_s = np.where(last >= 0, ends_s[last], edges_s[0]) if len(ends_s) else np.full(len(last), edges_s[0])
    most_s = gpu.tail_s * (1.0 + gpu.uncertainty["tail_s"])
    unsettled = (pieces.step < 0) & (pieces.start_s - np.maximum(since_s, edges_s[0]) < most_s)
    resting_s = np.bincount(pieces.slice, pieces.length_s * unsettled, len(edges_s) - 1)
    found: Bools = resting_s > _RESTING * np.diff(edges_s)
    return found
