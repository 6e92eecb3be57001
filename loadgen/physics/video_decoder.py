"""The FLOP of turning a latent video into frames: convolutions row by row, and the middle attention.

Three lists of convolutions of the same decoder. ``table`` is the study's Table
6, each row once; ``text`` the same rows with the multiplicities of the study's
prose (two convolutions in the middle, three a stage); ``wan21`` every
convolution of the released decoder, whose causal upsampling makes 1 frame of
the first latent frame and 4 of each other. The table leaves out the stage of 96
channels at full resolution, the second convolution of every residual block and
the shortcuts, and comes to a fifth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadgen.types import Floats

FRAMES: dict[str, Callable[[Floats], Floats]] = {
    "ceil(T/4)": lambda t: np.ceil(t / 4),
    "ceil(T/2)": lambda t: np.ceil(t / 2),
    "T": lambda t: t,
    "a": lambda t: t // 4 + 1,
    "a-1": lambda t: t // 4,
    "b": lambda t: 2 * (t // 4) + 1,
    "b-1": lambda t: 2 * (t // 4),
    "c": lambda t: 4 * (t // 4) + 1,
}
"""The frames that a convolution puts out, of the T frames asked for: a latent, b = 2a - 1, c = 4a - 3."""

MIDDLE_CHANNELS = 384


class Convolution(NamedTuple):
    """A row of a decoder: kernel (time, height, width), channels, the frames and the grid it puts out.

    ``frames`` is a key of ``FRAMES``; the grid is H/``scale`` by W/``scale``,
    not rounded; ``times`` such convolutions stand in the decoder.
    """

    stage: str
    kernel: tuple[int, int, int]
    channels_in: int
    channels_out: int
    frames: str
    scale: int
    times: int = 1

    def flop(self, height: Floats, width: Floats, frames: Floats) -> Floats:
        """``2 k_t k_h k_w C_in C_out T' H' W'``, all ``times`` of it (the study's eq 11)."""
        weights = prod(self.kernel) * self.channels_in * self.channels_out
        grid = FRAMES[self.frames](frames) * (height / self.scale) * (width / self.scale)
        return 2.0 * weights * self.times * grid


def _table(middle: int, a_stage: int) -> tuple[Convolution, ...]:
    return (
        Convolution("D0", (3, 3, 3), 16, 384, "ceil(T/4)", 8),
        Convolution("middle", (3, 3, 3), 384, 384, "ceil(T/4)", 8, middle),
        Convolution("D1", (3, 3, 3), 384, 384, "ceil(T/4)", 8, a_stage),
        Convolution("up in time", (3, 1, 1), 384, 768, "ceil(T/2)", 8),
        Convolution("up in space", (1, 3, 3), 384, 192, "ceil(T/2)", 4),
        Convolution("D2", (3, 3, 3), 192, 384, "ceil(T/2)", 4, a_stage),
        Convolution("up in time", (3, 1, 1), 384, 768, "T", 4),
        Convolution("up in space", (1, 3, 3), 384, 192, "T", 2),
        Convolution("D3", (3, 3, 3), 192, 192, "T", 2, a_stage),
        Convolution("up in space", (1, 3, 3), 192, 96, "T", 1),
        Convolution("head", (3, 3, 3), 96, 3, "T", 1),
    )


DECODERS: Mapping[str, Sequence[Convolution]] = {
    "table": _table(1, 1),
    "text": _table(2, 3),
    "wan21": (
        Convolution("unquantise", (1, 1, 1), 16, 16, "a", 8),
        Convolution("D0", (3, 3, 3), 16, 384, "a", 8),
        Convolution("middle and D1", (3, 3, 3), 384, 384, "a", 8, 10),
        Convolution("up in time", (3, 1, 1), 384, 768, "a-1", 8),
        Convolution("up in space", (1, 3, 3), 384, 192, "b", 4),
        Convolution("D2 widens", (3, 3, 3), 192, 384, "b", 4),
        Convolution("D2 shortcut", (1, 1, 1), 192, 384, "b", 4),
        Convolution("D2", (3, 3, 3), 384, 384, "b", 4, 5),
        Convolution("up in time", (3, 1, 1), 384, 768, "b-1", 4),
        Convolution("up in space", (1, 3, 3), 384, 192, "c", 2),
        Convolution("D3", (3, 3, 3), 192, 192, "c", 2, 6),
        Convolution("up in space", (1, 3, 3), 192, 96, "c", 1),
        Convolution("D4", (3, 3, 3), 96, 96, "c", 1, 6),
        Convolution("head", (3, 3, 3), 96, 3, "c", 1),
    ),
}
"""The convolutions of each list, by its name."""


def convolution_flop(
    decoder: str, height: npt.ArrayLike, width: npt.ArrayLike, frames: npt.ArrayLike
) -> Floats:
    """The sum over the rows of ``DECODERS[decoder]`` for one video; arguments broadcast."""
    size = (np.asarray(height, float), np.asarray(width, float), np.asarray(frames, float))
    return np.asarray(sum(row.flop(*size) for row in DECODERS[decoder]), float)


def middle_attention_flop(height: npt.ArrayLike, width: npt.ArrayLike, frames: npt.ArrayLike) -> Floats:
    """``ceil(T/4) (8 C^2 L + 4 L^2 C)``, C = 384, L = (H/8)(W/8): attention inside each latent frame.

    The study's eq 13, for every list of convolutions; arguments broadcast.
    """
    grid = (np.asarray(height, float) / 8) * (np.asarray(width, float) / 8)
    slices = FRAMES["ceil(T/4)"](np.asarray(frames, float))
    return np.asarray(slices * (8.0 * MIDDLE_CHANNELS**2 * grid + 4.0 * grid**2 * MIDDLE_CHANNELS), float)
