"""Time constants from the durations of steps: efficiencies and what a step costs the host.

    t = t_fixed + t_graph | t_eager + sum_k max(F_k / (compute peak), D_k / (bandwidth B))

linear in ``1 / compute``, ``1 / bandwidth`` and the two overheads but for which side of each maximum counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.calibrate.estimate import Answer, Question, answer
from analysis.calibrate.observed import Ints, Observed
from analysis.fit.estimate import Matrix
from loadgen.physics.hardware import Efficiency
from loadgen.types import Floats

NAMES = ("bandwidth", "compute", "eager_overhead_s", "graph_overhead_s")
"""In order of preference: of two that the runs cannot tell apart the first is fitted."""
_INVERSE = ("bandwidth", "compute")


@dataclass(frozen=True, slots=True)
class Steps:
    """Usable steps of all runs, (n,) each but for the groups, (K, n)."""

    compute_s: Matrix
    memory_s: Matrix
    fixed_s: Floats
    eager: Floats
    duration_s: Floats
    run: Ints
    stretch: Ints
    kind: Ints

    def some(self, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Steps:
        """Those of ``which``, (n,)."""
        return Steps(*(getattr(self, name)[..., which] for name in self.__slots__))

    def law(self, x: Floats) -> tuple[Floats, Matrix]:
        """Durations and derivatives at (1 / bandwidth, 1 / compute, eager_s, graph_s)."""
        memory_s, compute_s = x[0] * self.memory_s, x[1] * self.compute_s
        by_memory = memory_s >= compute_s
        columns = [
            np.where(by_memory, self.memory_s, 0.0).sum(axis=0),
            np.where(by_memory, 0.0, self.compute_s).sum(axis=0),
            self.eager,
            1.0 - self.eager,
        ]
        jacobian = np.stack(columns, axis=1)
        return self.fixed_s + jacobian @ x, jacobian


def steps_of(seen: Sequence[Observed]) -> Steps:
    """The usable steps of the runs; models may differ in their number of groups."""
    most = max(len(o.work.compute_s) for o in seen)

    def padded(groups: Matrix) -> Matrix:
        return np.pad(groups, ((0, most - len(groups)), (0, 0)))

    numbers = [np.full(int(o.usable.sum()), k) for k, o in enumerate(seen)]
    first_stretch = np.cumsum([0, *(int(o.stretch.max()) + 1 for o in seen)])
    first_kind = np.cumsum([0, *(int(o.kind.max()) + 1 for o in seen)])
    return Steps(
        np.concatenate([padded(o.work.compute_s[:, o.usable]) for o in seen], axis=1),
        np.concatenate([padded(o.work.memory_s[:, o.usable]) for o in seen], axis=1),
        np.concatenate([o.work.fixed_s[o.usable] for o in seen]),
        np.concatenate([o.work.eager[o.usable].astype(np.float64) for o in seen]),
        np.concatenate([o.did.duration_s[o.usable] for o in seen]),
        np.concatenate(numbers),
        np.concatenate([o.stretch[o.usable] + first_stretch[k] for k, o in enumerate(seen)]),
        np.concatenate([o.kind[o.usable] + first_kind[k] for k, o in enumerate(seen)]),
    )


def questions(base: Efficiency) -> list[Question]:
    """The constants as they enter the law, with the table's values."""
    found = []
    for name in NAMES:
        value = float(getattr(base, name))
        found.append(Question(name, 1.0 / value if name in _INVERSE else value, base.uncertainty[name]))
    return found


def fit_times(steps: Steps, base: Efficiency) -> Answer:
    """The constants as they enter the law: see `constants`."""
    return answer(steps.law, steps.duration_s, questions(base), (steps.stretch, steps.kind), relative=True)


def constants(found: Answer) -> dict[str, tuple[float, float, float]]:
    """Value, low, high of each constant by its name in `Efficiency`."""
    ends = {}
    for name, value, half in zip(NAMES, found.value.tolist(), found.half.tolist(), strict=True):
        low, high = max(value - half, 0.0), value + half
        if name in _INVERSE:
            most = min(1.0 / low, 1.0) if low > 0 else 1.0  # a share of the peak is at most all of it
            ends[name] = (1.0 / value, 1.0 / high, max(most, 1.0 / value))
        else:
            ends[name] = (value, low, high)
    return ends
