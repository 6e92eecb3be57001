"""What a busy board draws, as a function of how hard its two resources work."""

from __future__ import annotations

from math import exp

import numpy as np

from loadgen.physics.hardware import Gpu
from loadgen.types import Floats


def busy_power_w(gpu: Gpu, memory_utilisation: float, compute_utilisation: float) -> float:
    """Mean board power in watts while a step runs.

    ``P = P_act + (TDP - P_act) min(1, a u_m + c (1 - exp(-u_c / u0)))`` with
    ``u_m`` the HBM traffic over peak bandwidth and ``u_c`` the arithmetic rate
    over the peak of the dtype in use, both averaged over the step, >= 0. The
    compute term saturates early: tensor cores draw most of their power long
    before they reach peak rate. Constants a, c, u0, P_act belong to the board.
    Always between ``gpu.active_w`` and ``gpu.tdp_w``.
    """
    load = gpu.memory_weight * memory_utilisation + gpu.compute_weight * (
        1.0 - exp(-compute_utilisation / gpu.compute_knee)
    )
    return gpu.active_w + (gpu.tdp_w - gpu.active_w) * min(1.0, load)


def busy_powers_w(gpu: Gpu, memory_utilisation: Floats, compute_utilisation: Floats) -> Floats:
    """The same of many steps at once, (k,): watts."""
    load = gpu.memory_weight * memory_utilisation + gpu.compute_weight * -np.expm1(
        -compute_utilisation / gpu.compute_knee
    )
    watts: Floats = gpu.active_w + (gpu.tdp_w - gpu.active_w) * np.minimum(1.0, load)
    return watts
