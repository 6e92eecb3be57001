"""A launch made concrete: model, boards, step costs, limits, and a fresh engine with its scheduler.

The service serves it over HTTP; benchmarks and planners drive its engine directly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loadgen.config import known
from loadgen.launch import Launch
from loadgen.physics.capped import CappedStepModel
from loadgen.physics.clocks import at_clock, check_cap, check_clock, clocks_of
from loadgen.physics.formats import DTYPES
from loadgen.physics.hardware import VLLM_GRAPH_ROWS, Efficiency, Gpu
from loadgen.physics.models import find_model
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import profile_of
from loadgen.physics.transformer import StepModel
from loadgen.physics.uncertainty import draw
from loadgen.server.engine import CostModel, Engine, Policy
from loadgen.server.gpu import Board
from loadgen.server.limits import derive_limits
from loadgen.server.tgi_policy import TgiPolicy, UnchunkedTgiPolicy
from loadgen.server.vllm_policy import VllmPolicy

_BOARD_STREAM, _DRAW_STREAM = 0x626F6172, 0x64726177  # keep these draws apart from the plan's streams


class Deployment:
    """What a launch describes. ``profile``: of the board, instead of what ``launch.gpu`` names.

    Raises ConfigError for an unknown id, CapacityError when it cannot fit.
    """

    def __init__(self, launch: Launch, profile: Profile | None = None) -> None:
        self.launch = launch
        self.profile = profile_of(launch.gpu) if profile is None else profile
        self.model = find_model(launch.model, "server.model")
        gpu, efficiency = self.profile.gpu, self.profile.efficiency
        self.dtype = known("server.dtype", launch.dtype, DTYPES)
        efficiency = replace(efficiency, graph_max_rows=_graph_rows(launch, efficiency))
        hardware = launch.hardware
        if hardware.power_cap_w is not None:
            check_cap(gpu, hardware.power_cap_w, "server.hardware.power_cap_w")
        if hardware.sm_clock_mhz is not None:
            check_clock(gpu, hardware.sm_clock_mhz, "server.hardware.sm_clock_mhz")
            gpu, efficiency = at_clock(gpu, efficiency, hardware.sm_clock_mhz)
        if hardware.draw is not None:
            rng = np.random.default_rng([_DRAW_STREAM, launch.seed, hardware.draw])
            gpu, efficiency = draw(gpu, efficiency, rng)
        self.gpu = gpu
        self.step_model = self._steps(gpu, efficiency)
        self.limits = derive_limits(self.model, gpu, self.dtype, launch)

    def _steps(self, gpu: Gpu, efficiency: Efficiency) -> StepModel | CappedStepModel:
        """The step costs, under the power cap if one is set."""
        hardware, shards = self.launch.hardware, self.launch.launcher.num_shard
        if hardware.power_cap_w is None:
            return StepModel(self.model, gpu, self.dtype, shards=shards, efficiency=efficiency)
        return CappedStepModel(
            self.model,
            gpu,
            self.dtype,
            cap_w=hardware.power_cap_w,
            sm_clock_mhz=hardware.sm_clock_mhz,
            shards=shards,
            efficiency=efficiency,
        )

    @property
    def power_limit_w(self) -> float:
        """Watts that one board never exceeds: its TDP, or its power cap if its lowest clock keeps within."""
        return self.step_model.limit_w if isinstance(self.step_model, CappedStepModel) else self.gpu.tdp_w

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of this hardware."""
        cap_w = self.launch.hardware.power_cap_w
        if cap_w is None or self.power_limit_w <= cap_w:
            return ()
        lowest_mhz = clocks_of(self.gpu).lowest_mhz
        return (
            f"server.hardware.power_cap_w: {cap_w:g} W cannot always be held: at its lowest clock, "
            f"{lowest_mhz:g} MHz, {self.gpu.id} may draw up to {self.power_limit_w:.4g} W",
        )

    def policy(self) -> Policy:
        """A fresh scheduler."""
        limits, flags = self.limits, self.launch.launcher
        if self.launch.scheduling == "vllm":
            assert limits.max_batch_size is not None
            return VllmPolicy(limits.max_batch_prefill_tokens, limits.max_batch_size)
        if flags.prefill_chunking:
            return TgiPolicy(
                limits.max_batch_prefill_tokens,
                limits.max_batch_size,
                max_input_tokens=limits.max_input_tokens,
            )
        return UnchunkedTgiPolicy(
            limits.max_batch_prefill_tokens,
            limits.max_batch_size,
            max_input_tokens=limits.max_input_tokens,
            waiting_served_ratio=flags.waiting_served_ratio,
            max_waiting_tokens=flags.max_waiting_tokens,
        )

    def engine(self, model: CostModel | None = None) -> Engine:
        """A fresh engine, its cache empty; ``model`` in place of the deployment's own step costs."""
        limits = self.limits
        return Engine(
            self.step_model if model is None else model,
            self.policy(),
            limits.max_batch_total_tokens // limits.block_tokens,
            block_tokens=limits.block_tokens,
            max_total_tokens=limits.max_total_tokens,
            prefix_caching=self.launch.launcher.prefix_caching,
        )

    def boards(self, start_s: float) -> tuple[Board, ...]:
        """One board per shard, whose history begins at ``start_s``."""
        hardware, gain = self.launch.hardware, self.launch.hardware.sensor_gain
        shards = range(self.launch.launcher.num_shard)
        gpu = replace(self.gpu, tdp_w=self.power_limit_w)
        if hardware.board_seed is None:
            return tuple(Board(gpu, start_s, sensor_gain=gain) for _ in shards)
        rng = np.random.default_rng([_BOARD_STREAM, hardware.board_seed])
        return tuple(Board.drawn(gpu, start_s, rng, sensor_gain=gain) for _ in shards)


def _graph_rows(launch: Launch, efficiency: Efficiency) -> int:
    """The largest decode step replayed as a CUDA graph."""
    graphs = launch.launcher.cuda_graphs
    if graphs is not None:
        return max(graphs, default=0)
    return VLLM_GRAPH_ROWS if launch.scheduling == "vllm" else efficiency.graph_max_rows
