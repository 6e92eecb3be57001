"""Figures that the entries share: what the documents print in tables, and what others measured.

Measured by others: the campaign of ten prompts a model whose table is in the
authors' public repository, an earlier one than the documents' fifty.
"""

from __future__ import annotations

from typing import NamedTuple

IDLE_W = 120.0
"""What the report says a board draws "even when no kernel is running" (4.2.2)."""
BASELINE_WH, RANDOM_WH, FIXED_WH, LARGE_WH = 1.2e-1, 9.6e-3, 1.1e-3, 2.4e-2
"""The report's section 4.4: transformers, TGI with random arrivals, TGI every 50 ms, 70B on four boards."""
GPU_WH, CPU_WH, RAM_WH = 0.202, 0.024, 0.019
"""The report's section 3.2: means of one reply."""
SCRIPT_GAP_S = 0.175
"""Mean gap of the authors' script by default: uniform on 0.05 to 0.3 s."""
HOUSEHOLD_KWH_A_YEAR = 4255.0
"""The report's French household (4.5)."""
CODECARBON_RAM_W = 38.0
"""What CodeCarbon takes the memory of the authors' host to draw, always."""


class Video(NamedTuple):
    """A row of the paper's Tables 2 and 4: steps; means of one video, with the energy of GPU, CPU, RAM."""

    steps: int
    latency_s: float
    gpu_wh: float
    cpu_wh: float
    ram_wh: float

    @property
    def total_wh(self) -> float:
        return self.gpu_wh + self.cpu_wh + self.ram_wh

    @property
    def gpu_share(self) -> float:
        return self.gpu_wh / self.total_wh

    @property
    def gpu_w(self) -> float:
        """Mean power of the board: its energy over the latency."""
        return self.gpu_wh * 3600.0 / self.latency_s


VIDEOS: dict[str, Video] = {
    "WAN2.1-T2V-14B": Video(50, 1875.0, 359.7, 35.6, 19.8),
    "WAN2.1-T2V-1.3B": Video(50, 410.0, 78.8, 7.4, 4.3),
    "Mochi-1-preview": Video(64, 263.0, 44.7, 4.6, 2.8),
    "CogVideoX-5B": Video(50, 124.0, 21.6, 2.4, 1.3),
    "CogVideoX-2B": Video(50, 50.6, 8.3, 0.84, 0.53),
    "LTX-Video-0.9.7-dev": Video(40, 9.7, 3.16, 0.32, 0.19),
    "AnimateDiff": Video(4, 0.68, 0.115, 0.016, 0.008),
}


class Campaign(NamedTuple):
    """Means over ``n`` videos of the public table: seconds and watt-hours of the board."""

    n: int
    latency_s: float
    gpu_wh: float


CAMPAIGN_SOURCE = "table of measurements in the authors' public repository"
CAMPAIGN: dict[str, Campaign] = {
    "WAN2.1-T2V-14B": Campaign(1, 1898.4, 364.9),
    "Mochi-1-preview": Campaign(10, 274.0, 46.77),
    "CogVideoX-5B": Campaign(10, 123.86, 21.707),
    "CogVideoX-2B": Campaign(10, 51.60, 8.323),
    "LTX-Video-0.9.7-dev": Campaign(10, 18.008, 3.187),
    "AnimateDiff": Campaign(10, 0.6944, 0.1119),
}
"""At the documents' resolutions; LTX with all three of its stages, of which 9.870 s are the first."""
LTX_FIRST_STAGE_S = 9.870
WAN_480P_S = 102.76
"""WAN2.1-T2V-1.3B; its videos there are of 480 x 832 pixels."""
