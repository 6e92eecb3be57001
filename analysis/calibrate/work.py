"""What steps do, group of kernels by group: the step model's formula as arrays, its constants left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loadgen.physics.breakdown import Mix, breakdown
from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.physics.transformer import StepModel
from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Work:
    """Work of S steps of one board.

    ``compute_s``, ``memory_s``: (K, S), seconds of each group's arithmetic and traffic at full
    efficiency; ``fixed_s``: (S,), exchanges between boards and what quantised products add,
    which no constant asked for scales;
    ``eager``: (S,), whether the host launches every kernel. ``flop_s``, ``traffic_s``: (S,), all
    arithmetic and traffic over the peaks that utilisations are taken of.
    """

    compute_s: Matrix
    memory_s: Matrix
    fixed_s: Floats
    eager: Bools
    flop_s: Floats
    traffic_s: Floats

    def seconds(self, efficiency: Efficiency) -> Floats:
        """Durations under these constants, (S,), as `StepModel` gives them."""
        overhead = np.where(self.eager, efficiency.eager_overhead_s, efficiency.graph_overhead_s)
        groups = np.maximum(self.compute_s / efficiency.compute, self.memory_s / efficiency.bandwidth)
        found: Floats = self.fixed_s + overhead + groups.sum(axis=0)
        return found


def work_of(
    mix: Mix, model: Transformer, gpu: Gpu, dtype: Dtype, shards: int, efficiency: Efficiency
) -> Work:
    """The work of S steps of this mix, (S,) each. Of the efficiency only what is not fitted counts.

    Raises ConfigError when the model cannot be split so, or the board cannot run the format.
    """
    bare = replace(efficiency, compute=1.0, bandwidth=1.0, graph_overhead_s=0.0, eager_overhead_s=0.0)
    steps = StepModel(model, gpu, dtype, shards=shards, efficiency=bare)
    groups = breakdown(steps, mix)
    compute_s, memory_s = (np.stack([getattr(g, name) for g in groups]) for name in ("compute_s", "memory_s"))
    whole_s = np.sum([g.time_s for g in groups], axis=0)
    decoding = np.asarray(mix.decode_rows, dtype=np.float64)
    return Work(
        compute_s,
        memory_s,
        whole_s - np.maximum(compute_s, memory_s).sum(axis=0),
        (np.asarray(mix.prefill_tokens) > 0) | (decoding > steps.groups.graph_rows),
        np.sum([g.flop for g in groups], axis=0) / steps.peak_flop_per_s,
        np.sum([g.traffic_bytes for g in groups], axis=0) / gpu.bandwidth_bytes_per_s,
    )
