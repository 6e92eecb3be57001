"""What a generated video costs: the text-to-video study's model of the WAN2.1 pipeline.

Text encoder once, then in each of S denoising steps g passes of a diffusion
transformer over the l tokens of the latent video, then the decoder once. Time is
FLOP over a sustained rate, energy is that time at full power. Arguments
broadcast as arrays do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loadgen.config import near
from loadgen.errors import ConfigError
from loadgen.physics.video_decoder import DECODERS, convolution_flop, middle_attention_flop
from loadgen.types import Floats

PEAK_FLOP_PER_S = 989e12
"""Dense 16-bit rate of an H100 SXM. The study's Tables 5 and 9 print 989e15; its text has 989e12."""
POWER_W = 700.0
"""The same board's power limit, which the study takes as its power throughout."""
UTILISATION = 0.456
"""The study's mu: sustained FLOP/s over the peak."""

TEXT_TOKENS = 512
TEXT_PASSES = 2
TEXT_HIDDEN = 4096
TEXT_LAYERS = 24
TEXT_EXPANSION = 2.5
TIMESTEP_WIDTH = 256

TOKEN_RULES = ("paper", "exact")


@dataclass(frozen=True, slots=True)
class VideoTransformer:
    """A diffusion transformer: N blocks of width d with an MLP of width ``ffn``. Heads cancel out."""

    id: str
    layers: int
    hidden: int
    ffn: int
    source: str

    @property
    def block_parameters(self) -> int:
        """``N (8 d^2 + 2 d ffn)``: the matrices of all blocks, self and cross attention and MLP."""
        return self.layers * (8 * self.hidden**2 + 2 * self.hidden * self.ffn)


MODELS: Mapping[str, VideoTransformer] = {
    model.id: model
    for model in (
        VideoTransformer(
            "paper", 32, 2048, 8192, "the study's Table 5: the defaults of the class, which no release has"
        ),
        VideoTransformer("wan2.1-1.3b", 30, 1536, 8960, "configuration of the released WAN2.1-T2V-1.3B"),
        VideoTransformer("wan2.1-14b", 40, 5120, 13824, "configuration of the released WAN2.1-T2V-14B"),
    )
}


class VideoFlop(NamedTuple):
    """FLOP of one video by part; those of the steps hold all S steps and g passes.

    ``attention_products``, of which ``self_attention`` consists beside its
    projections, are the two products of queries with keys and of weights with
    values, ``4 l^2 d`` a block; they are not a part of their own.
    """

    text: Floats
    vae_conv: Floats
    vae_mid: Floats
    self_attention: Floats
    cross_attention: Floats
    mlp: Floats
    timestep: Floats
    attention_products: Floats

    @property
    def parts(self) -> dict[str, Floats]:
        """The parts by the names that the command prints; their sum is ``total``."""
        return {
            "text": self.text,
            "vae_conv": self.vae_conv,
            "vae_mid": self.vae_mid,
            "self": self.self_attention,
            "cross": self.cross_attention,
            "mlp": self.mlp,
            "tau": self.timestep,
        }

    @property
    def total(self) -> Floats:
        return np.asarray(sum(self.parts.values()), float)


class VideoCost(NamedTuple):
    """One video: tokens of its latent, FLOP by part, seconds and watt-hours of the board."""

    tokens: Floats
    flop: VideoFlop
    latency_s: Floats
    energy_wh: Floats


def find_model(name: str) -> VideoTransformer:
    """The model of this id. Raises ConfigError naming the nearest."""
    return MODELS[_one_of("config", name, MODELS)]


def token_count(
    height: npt.ArrayLike, width: npt.ArrayLike, frames: npt.ArrayLike, rule: str = "paper"
) -> Floats:
    """The l tokens that the transformer sees of a video of this size in pixels and frames.

    ``paper``: ``(1 + T/4)(H/16)(W/16)``, not rounded. ``exact``, as the pipeline
    rounds: ``(T//4 + 1)((H//8)//2)((W//8)//2)``. Equal for T = 4k apart from what
    the floors take; for T = 4k + 1 the paper's rule has a quarter of a latent
    frame more. Raises ConfigError for sizes that are not positive, and for an
    exact rule that leaves no token.
    """
    h, w, t = (_positive(n, v) for n, v in (("height", height), ("width", width), ("frames", frames)))
    if _one_of("tokens", rule, TOKEN_RULES) == "paper":
        return np.asarray((1 + t / 4) * (h / 16) * (w / 16), float)
    for name, value in (("height", h), ("width", w)):
        if np.any(value < 16):
            raise ConfigError(
                f"{name}: expected >= 16 pixels with tokens exact (a token is 16 x 16), got {value.min():g}"
            )
    return np.asarray((t // 4 + 1) * (h // 8 // 2) * (w // 8 // 2), float)


def pass_flop(model: VideoTransformer, tokens: npt.ArrayLike) -> VideoFlop:
    """FLOP of one forward pass over l tokens; the parts outside of the steps are 0.

    With m = 512 tokens of text: self ``N (8 l d^2 + 4 l^2 d)``, cross
    ``N (4 l d^2 + 4 m d^2 + 4 l m d)``, MLP ``4 N l d ffn``, timestep
    ``2 d_tau d + 14 d^2``. The study's eq 10 has the steps in the last one
    already and counts them twice in its sum; here they come once.
    """
    n, d, m = model.layers, float(model.hidden), TEXT_TOKENS
    tokens = _positive("tokens", tokens)
    nothing = np.zeros_like(tokens)
    products = n * 4 * tokens**2 * d
    return VideoFlop(
        text=nothing,
        vae_conv=nothing,
        vae_mid=nothing,
        self_attention=n * 8 * tokens * d**2 + products,
        cross_attention=n * (4 * tokens * d**2 + 4 * m * d**2 + 4 * tokens * m * d),
        mlp=n * 4 * tokens * d * model.ffn,
        timestep=nothing + 2 * TIMESTEP_WIDTH * d + 14 * d**2,
        attention_products=products,
    )


def text_flop(ffn_matrices: int = 2) -> float:
    """FLOP of the text encoder's two calls a video, ``p L (8 m d^2 + 4 m^2 d + 2 k f m d^2)``.

    k = 2 matrices in an MLP is the study's eq 9; the encoder that the released
    models use is gated and has 3, which adds a quarter to this and 1e-5 to a video.
    """
    m, d = TEXT_TOKENS, TEXT_HIDDEN
    a_layer = 8 * m * d**2 + 4 * m**2 * d + 2 * ffn_matrices * TEXT_EXPANSION * m * d**2
    return TEXT_PASSES * TEXT_LAYERS * a_layer


def video_flop(
    model: VideoTransformer,
    height: npt.ArrayLike,
    width: npt.ArrayLike,
    frames: npt.ArrayLike,
    steps: npt.ArrayLike,
    *,
    tokens: str = "paper",
    vae: str = "table",
    guidance_passes: npt.ArrayLike = 2,
) -> VideoFlop:
    """FLOP of one video by part: text + decoder + S g passes (the study's eq 14).

    ``tokens`` is a rule of ``token_count``, ``vae`` a list of ``video_decoder.DECODERS``.
    Raises ConfigError for what is not positive or not known.
    """
    count = token_count(height, width, frames, tokens)
    decoder = _one_of("vae", vae, DECODERS)
    passes = _positive("steps", steps) * _positive("guidance passes", guidance_passes)
    one = pass_flop(model, count)
    shape = np.broadcast_shapes(count.shape, passes.shape)
    return VideoFlop(
        *(
            np.broadcast_to(part, shape)
            for part in (
                np.asarray(text_flop()),
                convolution_flop(decoder, height, width, frames),
                middle_attention_flop(height, width, frames),
                *(passes * part for part in one[3:]),
            )
        )
    )


def latency_s(
    flop: VideoFlop,
    *,
    mu_attention: npt.ArrayLike = UTILISATION,
    mu_linear: npt.ArrayLike = UTILISATION,
    peak_flop_per_s: npt.ArrayLike = PEAK_FLOP_PER_S,
) -> Floats:
    """Seconds: the attention products at their own share of the peak, everything else at the other.

    ``F_products / (mu_attention peak) + (F_total - F_products) / (mu_linear peak)``;
    with equal shares the study's ``F / (mu peak)``. Raises ConfigError for a
    share outside (0, 1].
    """
    attention, linear = _share("mu-attn", mu_attention), _share("mu-linear", mu_linear)
    seconds = flop.attention_products / attention + (flop.total - flop.attention_products) / linear
    return np.asarray(seconds / _positive("peak_flop_per_s", peak_flop_per_s), float)


def video_cost(
    model: VideoTransformer,
    height: npt.ArrayLike,
    width: npt.ArrayLike,
    frames: npt.ArrayLike,
    steps: npt.ArrayLike,
    *,
    tokens: str = "paper",
    vae: str = "table",
    guidance_passes: npt.ArrayLike = 2,
    power_w: npt.ArrayLike = POWER_W,
    **rates: Any,
) -> VideoCost:
    """Tokens, FLOP, seconds and watt-hours (``power_w`` x seconds) of one video.

    ``rates`` as ``latency_s`` takes them. Raises ConfigError as its parts do.
    """
    flop = video_flop(
        model, height, width, frames, steps, tokens=tokens, vae=vae, guidance_passes=guidance_passes
    )
    seconds = latency_s(flop, **rates)
    energy_wh = np.asarray(_positive("power_w", power_w) * seconds / 3600, float)
    return VideoCost(token_count(height, width, frames, tokens), flop, seconds, energy_wh)


def elasticity(model: VideoTransformer, tokens: npt.ArrayLike) -> Floats:
    """d ln F / d ln l of a forward pass, exact: 1 where work is linear in the tokens, 2 where quadratic."""
    one = pass_flop(model, tokens)
    growing = one.total - one.timestep - 4.0 * model.layers * TEXT_TOKENS * model.hidden**2
    return np.asarray((growing + one.attention_products) / one.total, float)


def utilisation(
    flop: VideoFlop, measured_s: npt.ArrayLike, *, peak_flop_per_s: float = PEAK_FLOP_PER_S
) -> Floats:
    """The one mu that gives the measured seconds: F / (peak seconds)."""
    return np.asarray(flop.total / (peak_flop_per_s * _positive("measured_s", measured_s)), float)


def two_rates(
    flop: VideoFlop, measured_s: npt.ArrayLike, *, peak_flop_per_s: float = PEAK_FLOP_PER_S
) -> tuple[float, float]:
    """(mu_attention, mu_linear) that give the measured seconds of two videos, ``flop`` of shape (2,).

    Two points and two unknowns: no residual tells how good they are. Raises
    ConfigError for videos in proportion, or when no positive rates fit them.
    """
    seconds = _positive("measured_s", measured_s)
    work = np.stack([flop.attention_products, flop.total - flop.attention_products], axis=-1)
    if work.shape != (2, 2) or seconds.shape != (2,):
        raise ConfigError(f"two rates: expected two videos and their seconds, got {seconds.size}")
    if np.linalg.cond(work) > 1e9:
        raise ConfigError("two rates: both videos have the same share of attention; take another resolution")
    inverse = np.linalg.solve(work, seconds)
    if np.any(inverse <= 0):
        raise ConfigError("two rates: no positive pair of rates gives both measured times")
    attention, linear = 1 / (inverse * peak_flop_per_s)
    return float(attention), float(linear)


def mean_percentage_error(measured: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The mean over points of ``|predicted - measured| / measured``, in percent: the study's Table 3.

    The study does not say whether it takes the sign away; its figures read as sizes of
    errors, and so does this. Raises ConfigError without a point or for a measured value <= 0.
    """
    known = _positive("measured", measured)
    guess = np.asarray(predicted, float)
    if known.shape != guess.shape or known.size == 0:
        raise ConfigError(
            f"mean percentage error: expected as many predictions as measurements, at least one; "
            f"got {guess.size} and {known.size}"
        )
    return float(100 * np.mean(np.abs(guess - known) / known))


def _positive(name: str, value: npt.ArrayLike) -> Floats:
    numbers = np.asarray(value, float)
    bad = numbers[~(np.isfinite(numbers) & (numbers > 0))]
    if bad.size:
        raise ConfigError(f"{name}: expected a number > 0, got {bad.flat[0]:g}")
    return numbers


def _share(name: str, value: npt.ArrayLike) -> Floats:
    numbers = _positive(name, value)
    if np.any(numbers > 1):
        raise ConfigError(f"{name}: expected a share of the peak, 0 < mu <= 1, got {numbers.max():g}")
    return numbers


def _one_of(key: str, name: str, known: Any) -> str:
    if name not in known:
        raise ConfigError(f"{key}: expected one of {', '.join(known)}; got {name!r}{near(name, known)}")
    return name
