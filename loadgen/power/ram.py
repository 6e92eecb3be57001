"""Power of a host's memory, estimated from its size.

Nothing on most hosts meters DIMMs. The estimate is the model of CodeCarbon v3
(https://docs.codecarbon.io, "RAM"): a number of DIMMs guessed from the capacity,
a power for each that shrinks as more share the channels. It does not depend on
load, so energy from it is a clock times a constant, and it is labelled so.
"""

from __future__ import annotations

import math
from typing import Literal

DIMM_SIZES_GB = (4, 8, 16, 32, 64, 128)
MOST_DIMMS = 32
FEWEST_DIMMS_POWERED = 2
X86_DIMM_W = 5.0
ARM_DIMM_W = 1.5
V2_W_PER_GB = 0.375
"""CodeCarbon v2 (same page): 3 W for 8 GB. What the thank-you study used (arXiv 2601.22362)."""
_SMALL_HOSTS = ((2.0, 1), (16.0, 2), (64.0, 4), (128.0, 8))
_TIERS = ((4, 1.0), (4, 0.9), (8, 0.8))
_LAST_TIER = 0.7


def dimm_count(capacity_gb: float) -> int:
    """How many DIMMs a host of ``capacity_gb`` probably has. Raises ValueError unless > 0."""
    if not capacity_gb > 0:
        raise ValueError(f"ram_gb: expected > 0, got {capacity_gb:g}")
    for limit_gb, count in _SMALL_HOSTS:
        if capacity_gb <= limit_gb:
            return count
    size_gb = max(size for size in DIMM_SIZES_GB if size <= capacity_gb / 8)
    return min(MOST_DIMMS, math.ceil(capacity_gb / size_gb))


def ram_power_w(capacity_gb: float, *, arm: bool = False, version: Literal[2, 3] = 3) -> float:
    """Watts of all DIMMs: the first 4 at full power, the next 4 at 0.9, 8 at 0.8, the rest at 0.7.

    At least 2 DIMMs are powered. 5 W a DIMM, 1.5 W on Arm. ``version`` 2 is
    CodeCarbon v2's 0.375 W/GB on any host. Raises ValueError unless ``capacity_gb`` > 0.
    """
    if version == 2:
        dimm_count(capacity_gb)  # the same hosts are refused
        return V2_W_PER_GB * capacity_gb
    left = max(FEWEST_DIMMS_POWERED, dimm_count(capacity_gb))
    full = 0.0
    for size, share in _TIERS:
        full += min(left, size) * share
        left -= min(left, size)
    full += left * _LAST_TIER
    return full * (ARM_DIMM_W if arm else X86_DIMM_W)
