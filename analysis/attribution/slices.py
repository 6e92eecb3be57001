"""A run cut at slices of power and at the server's steps: where in time its energy went.

Between readings nobody knows the power. A slice keeps the energy that was read in it;
within it stretches without work draw the idle power, and the rest is spread over the steps in
proportion to what they are expected to have cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from analysis.attribution.activity import Activity
from loadgen.types import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Stretches (M,) in which nothing changes, in order and without gaps, run time.

    ``edges_s``: (K + 1,), of the slices; ``slice``, ``step``: (M,), of which a piece is a part,
    step -1 where nothing ran. ``step_s``: (S,), the steps' durations. ``idle_w`` and ``active_w``:
    (M,), watts of all boards, once known (`powered`).
    """

    start_s: Floats
    end_s: Floats
    slice: Ints
    step: Ints
    edges_s: Floats
    step_s: Floats
    idle_w: Floats = field(default_factory=lambda: np.empty(0))
    active_w: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def length_s(self) -> Floats:
        """(M,)."""
        return self.end_s - self.start_s

    def per_slice(self, of_step: Floats) -> Floats:
        """What each step has, spread evenly over its duration and summed by slice, (K,)."""
        pieces = self._of_piece(of_step)
        found: Floats = np.bincount(self.slice, pieces, minlength=len(self.edges_s) - 1).astype(np.float64)
        return found

    def powered(
        self, energy_j: npt.NDArray[np.float64], idle_w: Floats, expected_s: Floats, expected_j: Floats
    ) -> Pieces:
        """The same with their power.

        ``energy_j``: (boards, K), as read; ``idle_w``: (boards,); ``expected_s``, ``expected_j``: (S,),
        the steps' seconds and active joules, of which only the proportions within a slice matter.
        """
        length_s, width_s = self.length_s, np.diff(self.edges_s)
        # A step expected to cost nothing still takes what was read in its time.
        expected = self._of_piece(np.maximum(expected_j, 1e-9 * np.maximum(self.step_s, 1e-9)))
        in_slice = np.bincount(self.slice, expected, minlength=len(width_s))
        share = expected / np.where(in_slice > 0, in_slice, 1.0)[self.slice]
        busy_s = np.bincount(self.slice, length_s * (self.step >= 0), minlength=len(width_s))
        long = self._of_piece(np.maximum(expected_s, 1e-9))
        of_busy_s = (
            long * (busy_s / np.maximum(np.bincount(self.slice, long, len(width_s)), 1e-12))[self.slice]
        )
        resting_s = np.where(self.step >= 0, of_busy_s, length_s)
        idle, active = np.zeros(len(length_s)), np.zeros(len(length_s))
        for read_j, floor_w in zip(np.maximum(energy_j, 0.0), idle_w, strict=True):
            mean_w = read_j / width_s
            rest_w = np.where(in_slice > 0, np.minimum(floor_w, mean_w), mean_w)
            idle += rest_w[self.slice] * resting_s / length_s
            active += share * ((mean_w - rest_w) * width_s)[self.slice] / length_s
        return replace(self, idle_w=idle, active_w=active)

    def _of_piece(self, of_step: Floats) -> Floats:
        if not len(self.step_s):
            return np.zeros(len(self.step))
        per_s = of_step / np.where(self.step_s > 0, self.step_s, 1.0)
        spread: Floats = np.where(self.step >= 0, self.length_s * per_s[self.step], 0.0)
        return spread


def slice_edges(first_s: float, last_s: float, marks_s: Iterable[float], slice_s: float) -> Floats:
    """Edges of slices of about ``slice_s`` over [first, last], those of ``marks_s`` inside it among them."""
    marks = [first_s, *sorted({t for t in marks_s if first_s < t < last_s}), last_s]
    found = [np.array([first_s])]
    for a, b in pairwise(marks):
        found.append(np.linspace(a, b, max(1, int((b - a) / slice_s)) + 1)[1:])
    return np.concatenate(found)


def cut(did: Activity, edges_s: Floats) -> Pieces:
    """The slices, cut at the beginnings and ends of steps."""
    inside = [t[(t > edges_s[0]) & (t < edges_s[-1])] for t in (did.start_s, did.end_s)]
    cuts = np.unique(np.concatenate([edges_s, *inside]))
    middle = 0.5 * (cuts[:-1] + cuts[1:])
    step = np.searchsorted(did.start_s, middle, side="right") - 1
    if len(did.start_s):
        step = np.where((step >= 0) & (middle < did.end_s[step]), step, -1)
    slice = np.searchsorted(edges_s, middle, side="right") - 1
    return Pieces(cuts[:-1], cuts[1:], slice, step, edges_s, did.duration_s)
