"""A board at a lower SM clock: t(f) and P(f).

With s = f / f_max, v(f) = V(f) / V(f_max) and g = s v^2:

    peak rates               x s
    memory bandwidth         x b = min(1, f / f_bandwidth)
    fixed cost of a step     x 1 + x (1 / s - 1), x the share that runs on the SMs
    active above idle        x g
    the memory term          x m b + (1 - m) g, m the share that the memory itself draws
    the compute term         x g
    idle powers, links, TDP  x 1

v is v_min up to a knee and rises linearly from there to 1 at f_max. A board is
adjusted, not a model: whatever takes a `Gpu` and an `Efficiency` runs at any
clock. Joules of the same work then have a minimum at the knee where arithmetic
bounds it, since below the knee only the idle power's time grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import hypot, inf, log, sqrt
from typing import Any

from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.hardware import Constant, Efficiency, Gpu
from loadgen.physics.power import busy_power_w

STEP_MHZ = 15.0
"""Distance between the clocks that NVIDIA boards list as supported."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What of a board depends on its SM clock.

    ``lowest_mhz`` to ``highest_mhz`` can be locked; at the highest the board is
    as its `Gpu` says. ``bandwidth_mhz``: below it the SMs issue too few loads to
    fill the memory. ``knee_mhz`` and ``least_voltage``: up to the knee the
    voltage is this share of that at the highest clock. ``memory_own_share``: of
    the memory term of the busy law, drawn by the memory and its interface.
    ``overhead_share``: of the fixed cost of a step, spent on the SMs.
    ``least_cap_w``: the lowest power limit the driver takes; the highest is the
    TDP. ``sources`` and ``uncertainty`` as in `Gpu`.
    """

    lowest_mhz: float
    highest_mhz: float
    bandwidth_mhz: float
    knee_mhz: float
    least_voltage: float
    memory_own_share: float
    overhead_share: float
    least_cap_w: float
    sources: Mapping[str, str]
    uncertainty: Mapping[str, float]

    def voltage(self, mhz: float) -> float:
        """Core voltage at a clock over that at the highest."""
        rise = (mhz - self.knee_mhz) / (self.highest_mhz - self.knee_mhz)
        return self.least_voltage + (1.0 - self.least_voltage) * min(max(rise, 0.0), 1.0)

    def dynamic(self, mhz: float) -> float:
        """g: switching power of the same circuits at a clock over that at the highest."""
        return mhz / self.highest_mhz * self.voltage(mhz) ** 2

    def bandwidth(self, mhz: float) -> float:
        """b: memory bandwidth at a clock over that at the highest."""
        return min(1.0, mhz / self.bandwidth_mhz)

    def memory_power(self, mhz: float) -> float:
        """The memory term at a clock over that at the highest, the memory as busy as this clock allows."""
        own = self.memory_own_share
        return own * self.bandwidth(mhz) + (1.0 - own) * self.dynamic(mhz)

    def overhead(self, mhz: float) -> float:
        """The fixed cost of a step at a clock over that at the highest."""
        return 1.0 + self.overhead_share * (self.highest_mhz / mhz - 1.0)

    def grid(self, highest_mhz: float | None = None) -> list[float]:
        """The clocks a board may fall to, from ``highest_mhz`` down to the lowest, `STEP_MHZ` apart; MHz."""
        top = self.highest_mhz if highest_mhz is None else highest_mhz
        steps = int((top - self.lowest_mhz) / STEP_MHZ)
        found = [top - STEP_MHZ * k for k in range(steps + 1)]
        return found if found[-1] == self.lowest_mhz else [*found, self.lowest_mhz]


_DECODE_ANCHOR = (
    "assumed: HBM at 4 pJ/bit would be .7; .5 puts the best decode saving near the 32 % of an H200 "
    "(arXiv 2605.11999)"
)
_ISSUE = "assumed: 26 B a clock from each SM must carry the bandwidth in use, .8 of the peak"
_GDDR = "assumed: 30 % of the highest clock; an SM need carry a fifth of what it does on an HBM board"
_H100_CAP = "nvidia-smi -q of a 700 W board: 200 to 700 W (stackhpc/ansible-slurm-appliance#975)"
_A100_LOG = "nvidia-smi -q of an A100-SXM4: 100 to 400 W, 1,410 MHz (NVIDIA/nvidia-docker#1648)"
_L4_LOG = "nvidia-smi -q -x of an L4 (public log): 210 to 2,040 MHz, 40 to 72 W, .885 V at 2,040 MHz"
_HOPPER_VOLTAGE = "assumed: .68 V up to 60 % of the highest clock, .94 V at it"
_ADA_VOLTAGE = "assumed as the L4's"

_COMMON: dict[str, Constant[float]] = {
    "memory_own_share": Constant(0.5, _DECODE_ANCHOR, 0.40),
    "overhead_share": Constant(
        0.10,
        "assumed: .455 of the clock cost a host-bound H100 server 10 % throughput "
        "(sgl-project/sglang-omni#907)",
        0.90,
    ),
}


def _clocks(**constants: Constant[float]) -> Clocks:
    merged: Mapping[str, Constant[Any]] = _COMMON | constants
    return Clocks(
        **{field: c.value for field, c in merged.items()},
        sources={field: c.source for field, c in merged.items()},
        uncertainty={field: c.relative_uncertainty for field, c in merged.items()},
    )


CLOCKS: dict[str, Clocks] = {
    "h100-sxm": _clocks(
        lowest_mhz=Constant(345.0, "assumed: lowest graphics clock of the board's driver"),
        highest_mhz=Constant(1980.0, "NVIDIA H100 SXM: highest graphics clock (nvidia-smi -lgc 1980)"),
        bandwidth_mhz=Constant(780.0, f"{_ISSUE} of 132 SMs", 0.30),
        knee_mhz=Constant(1200.0, _HOPPER_VOLTAGE, 0.15),
        least_voltage=Constant(0.72, _HOPPER_VOLTAGE, 0.08),
        least_cap_w=Constant(200.0, _H100_CAP),
    ),
    "h200-sxm": _clocks(
        lowest_mhz=Constant(345.0, "assumed: as the H100"),
        highest_mhz=Constant(1980.0, "NVIDIA H200: highest graphics clock, as the H100's"),
        bandwidth_mhz=Constant(1120.0, f"{_ISSUE} of 132 SMs", 0.30),
        knee_mhz=Constant(1200.0, _HOPPER_VOLTAGE, 0.15),
        least_voltage=Constant(0.72, _HOPPER_VOLTAGE, 0.08),
        least_cap_w=Constant(200.0, f"as the H100: {_H100_CAP}"),
    ),
    "a100-sxm": _clocks(
        lowest_mhz=Constant(210.0, "assumed: as Ada boards (public log of an L4)"),
        highest_mhz=Constant(1410.0, _A100_LOG),
        bandwidth_mhz=Constant(580.0, f"{_ISSUE} of 108 SMs", 0.30),
        knee_mhz=Constant(
            1005.0,
            "energy of LLM inference is least near 1,005 MHz (Voltana page): the knee, by this model",
            0.10,
        ),
        least_voltage=Constant(
            0.80, "assumed: .7125 V at 1,080 MHz (NVIDIA/nvidia-docker#1648), .87 V at 1,410 MHz", 0.08
        ),
        least_cap_w=Constant(100.0, _A100_LOG),
    ),
    "l40s": _clocks(
        lowest_mhz=Constant(210.0, "as the L4's, of the same make (public nvidia-smi log)"),
        highest_mhz=Constant(2520.0, "NVIDIA L40S boost clock, at which its data sheet rates hold"),
        bandwidth_mhz=Constant(750.0, _GDDR, 0.50),
        knee_mhz=Constant(1360.0, _ADA_VOLTAGE, 0.15),
        least_voltage=Constant(0.77, _ADA_VOLTAGE, 0.08),
        least_cap_w=Constant(100.0, "assumed: as boards of 300 to 350 W of this make", 0.20),
    ),
    "l4": _clocks(
        lowest_mhz=Constant(210.0, _L4_LOG),
        highest_mhz=Constant(2040.0, _L4_LOG),
        bandwidth_mhz=Constant(610.0, _GDDR, 0.50),
        knee_mhz=Constant(1100.0, "assumed: 54 % of the highest clock", 0.15),
        least_voltage=Constant(0.77, "assumed .68 V; .885 V at 2,040 MHz in a public nvidia-smi log", 0.08),
        least_cap_w=Constant(40.0, _L4_LOG),
    ),
    "rtx-4090": _clocks(
        lowest_mhz=Constant(210.0, "as the L4's, of the same make (public nvidia-smi log)"),
        highest_mhz=Constant(
            2520.0, "NVIDIA Ada white paper: boost clock, at which its rates hold (2,820 MHz seen decoding)"
        ),
        bandwidth_mhz=Constant(750.0, _GDDR, 0.50),
        knee_mhz=Constant(1360.0, _ADA_VOLTAGE, 0.15),
        least_voltage=Constant(0.77, _ADA_VOLTAGE, 0.12),
        least_cap_w=Constant(
            150.0, "nvidia-smi -q -x of an RTX 4090: 150 to 450 W (1Panel-dev/1Panel#11910)"
        ),
    ),
}
"""By board id."""


def clocks_of(gpu: Gpu, place: str = "sm_clock_mhz") -> Clocks:
    """The clocks of a board, known by its id or else by the name NVML reports. Raises ConfigError."""
    found = CLOCKS.get(gpu.id)
    if found is None:
        found = next((CLOCKS[other.id] for other in GPUS.values() if other.name == gpu.name), None)
    if found is None:
        raise ConfigError(
            f"{place}: the clocks of {gpu.id} ({gpu.name}) are not known; known are {', '.join(CLOCKS)}"
        )
    return found


def check_clock(gpu: Gpu, mhz: float, place: str = "sm_clock_mhz") -> None:
    """Raises ConfigError for a clock that cannot be locked on this board, naming ``place`` and the range."""
    clocks = clocks_of(gpu, place)
    if not clocks.lowest_mhz <= mhz <= clocks.highest_mhz:
        raise ConfigError(
            f"{place}: expected {clocks.lowest_mhz:g} to {clocks.highest_mhz:g} MHz on {gpu.id}, got {mhz:g}"
        )


def check_cap(gpu: Gpu, cap_w: float, place: str = "power_cap_w") -> None:
    """Raises ConfigError for a power limit the driver would refuse, naming ``place`` and the range."""
    least_w = clocks_of(gpu, place).least_cap_w
    if not least_w <= cap_w <= gpu.tdp_w:
        raise ConfigError(f"{place}: expected {least_w:g} to {gpu.tdp_w:g} W on {gpu.id}, got {cap_w:g}")


def at_clock(
    gpu: Gpu, efficiency: Efficiency, sm_clock_mhz: float, *, now_mhz: float | None = None
) -> tuple[Gpu, Efficiency]:
    """The board and its kernels at a locked SM clock in MHz.

    ``now_mhz``: the clock at which the board given already is (None: its
    highest). At that clock both come back as they are. The uncertainty of the
    clocks' own constants is added, in quadrature, to that of the powers they
    scale, and the share of ``active_w`` that is idle power keeps the idle
    power's. Raises ConfigError for a clock outside the board's range.
    """
    check_clock(gpu, sm_clock_mhz)
    clocks = clocks_of(gpu)
    now = clocks.highest_mhz if now_mhz is None else now_mhz
    if sm_clock_mhz == now:
        return gpu, efficiency
    s = sm_clock_mhz / now
    g = clocks.dynamic(sm_clock_mhz) / clocks.dynamic(now)
    memory = clocks.memory_power(sm_clock_mhz) / clocks.memory_power(now)
    bandwidth = clocks.bandwidth(sm_clock_mhz) / clocks.bandwidth(now)
    overhead = clocks.overhead(sm_clock_mhz) / clocks.overhead(now)
    idle_w, above_w = gpu.context_idle_w, gpu.active_w - gpu.context_idle_w
    active_w = idle_w + above_w * g
    room = (gpu.tdp_w - gpu.active_w) / (gpu.tdp_w - active_w) if active_w < gpu.tdp_w else 1.0
    of_g, of_memory = (
        _spread(clocks, sm_clock_mhz, now, "dynamic"),
        _spread(clocks, sm_clock_mhz, now, "memory_power"),
    )
    r = gpu.uncertainty
    changed = {
        "active_w": hypot(
            r["active_w"] * gpu.active_w * g, of_g * above_w * g, r["context_idle_w"] * idle_w * (1.0 - g)
        )
        / active_w,
        "memory_weight": hypot(r["memory_weight"], of_memory),
        "compute_weight": hypot(r["compute_weight"], of_g),
        "bandwidth_bytes_per_s": hypot(
            r["bandwidth_bytes_per_s"],
            _spread(clocks, sm_clock_mhz, now, "bandwidth") if bandwidth < 1.0 else 0.0,
        ),
    }
    note = f"; at {sm_clock_mhz:g} MHz by loadgen.physics.clocks"
    scaled = {*changed, "peak_flop_per_s", "tail_w"}
    board = replace(
        gpu,
        peak_flop_per_s={name: rate * s for name, rate in gpu.peak_flop_per_s.items()},
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * bandwidth,
        tail_w=idle_w + (gpu.tail_w - idle_w) * g,
        active_w=active_w,
        memory_weight=gpu.memory_weight * memory * room,
        compute_weight=gpu.compute_weight * g * room,
        sources={name: text + note if name in scaled else text for name, text in gpu.sources.items()},
        uncertainty={**r, **changed},
    )
    fixed = ("graph_overhead_s", "eager_overhead_s", "decomposition_s")
    of_overhead = _spread(clocks, sm_clock_mhz, now, "overhead")
    kernels = replace(
        efficiency,
        graph_overhead_s=efficiency.graph_overhead_s * overhead,
        eager_overhead_s=efficiency.eager_overhead_s * overhead,
        decomposition_s=efficiency.decomposition_s * overhead,
        sources={name: text + note if name in fixed else text for name, text in efficiency.sources.items()},
        uncertainty={
            name: hypot(value, of_overhead) if name in fixed else value
            for name, value in efficiency.uncertainty.items()
        },
    )
    return board, kernels


def most_power_w(gpu: Gpu, efficiency: Efficiency) -> float:
    """Watts that no step exceeds: memory and arithmetic as busy as kernels make them, both at once."""
    return busy_power_w(gpu, efficiency.bandwidth, efficiency.compute)


def least_board(
    gpu: Gpu, efficiency: Efficiency, sm_clock_mhz: float | None = None, power_cap_w: float | None = None
) -> Gpu:
    """The board to take a floor under energy from, where a clock is locked or power capped.

    Rates are those of the highest clock it may run at. ``active_w`` is that of
    the lowest it may fall to, and ``tdp_w`` is such that ``tdp_w / peak`` are
    the least joules a FLOP of any of those clocks at peak rate, memory at rest.
    """
    if sm_clock_mhz is None and power_cap_w is None:
        return gpu
    clocks = clocks_of(gpu)
    grid = [clocks.highest_mhz if sm_clock_mhz is None else sm_clock_mhz]
    if power_cap_w is not None:
        grid = clocks.grid(grid[0])
    boards = [at_clock(gpu, efficiency, mhz)[0] for mhz in grid]
    full_w = min(busy_power_w(b, 0.0, inf) * grid[0] / mhz for b, mhz in zip(boards, grid, strict=True))
    return replace(boards[0], active_w=min(b.active_w for b in boards), tdp_w=full_w)


def _spread(clocks: Clocks, mhz: float, now_mhz: float, law: str) -> float:
    """Relative uncertainty of a law's ratio between two clocks, from that of each constant, in quadrature."""
    nominal = getattr(clocks, law)(mhz) / getattr(clocks, law)(now_mhz)
    most = {"least_voltage": 1.0, "memory_own_share": 1.0, "overhead_share": 1.0}
    total = 0.0
    for name in ("bandwidth_mhz", "knee_mhz", "least_voltage", "memory_own_share", "overhead_share"):
        raised = getattr(clocks, name) * (1.0 + clocks.uncertainty[name])
        # A knee at the highest clock has no rise after it.
        raised = min(raised, most.get(name, clocks.highest_mhz - STEP_MHZ))
        other = replace(clocks, **{name: raised})
        total += float(log(getattr(other, law)(mhz) / getattr(other, law)(now_mhz) / nominal)) ** 2
    return sqrt(total)
