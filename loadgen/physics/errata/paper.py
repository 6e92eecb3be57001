"""The text-to-video paper's model and scaling claims: B1 to B9, B14 to B16, B22."""

from __future__ import annotations

from functools import cache
from math import log2

import numpy as np

from loadgen.physics.errata.digits import number
from loadgen.physics.errata.erratum import ROUND, Erratum, Figure
from loadgen.physics.errata.published import VIDEOS
from loadgen.physics.video import (
    MODELS,
    PEAK_FLOP_PER_S,
    UTILISATION,
    VideoFlop,
    latency_s,
    pass_flop,
    text_flop,
    token_count,
    utilisation,
    video_cost,
    video_flop,
)
from loadgen.physics.video_decoder import DECODERS, FRAMES, convolution_flop

PARAMETERS = "3 and appendix A: parameters and time"
SCALING = "3.6, 4.2 and 6: scaling"

PAPER, SMALL = MODELS["paper"], MODELS["wan2.1-1.3b"]
HEIGHT, WIDTH, T, STEPS, PASSES = 720, 1280, 81, 50, 2
"""The paper's default point: pixels, frames, denoising steps, guidance passes."""
WITHIN = 1e-2
"""Tolerance of the model at the point where the paper says that it agrees with the measurement."""


@cache
def paper_flop(height: int = HEIGHT, width: int = WIDTH, frames: int = T, steps: int = STEPS) -> VideoFlop:
    """FLOP of a video with the paper's parameters, tokens and decoder."""
    return video_flop(PAPER, height, width, frames, steps)


def total(flop: VideoFlop) -> float:
    """All of it."""
    return float(flop.total)


@cache
def released_flop(model: str = "wan2.1-1.3b") -> VideoFlop:
    """FLOP of the default video with a released model, its tokens and its decoder."""
    return video_flop(MODELS[model], HEIGHT, WIDTH, T, STEPS, tokens="exact", vae="wan21")


def entries() -> tuple[Erratum, ...]:
    """B1 to B9, B14 to B16 and B22."""
    return (*_parameters(), *_parts(), *_scaling())


def _parameters() -> tuple[Erratum, ...]:
    measured = VIDEOS["WAN2.1-T2V-1.3B"]
    cost = video_cost(PAPER, HEIGHT, WIDTH, T, STEPS)
    excess = total(paper_flop()) / total(released_flop())
    wide = video_flop(SMALL, HEIGHT, WIDTH, T, STEPS)
    return (
        Erratum(
            "B1",
            "paper",
            PARAMETERS,
            "Table 5 (report: Table 9)",
            "peak rate of an H100, 989e15 FLOP/s",
            (Figure("dense 16-bit rate", 989e15, PEAK_FLOP_PER_S, "FLOP/s"),),
            "typo",
            "A thousand times too much; the text of 3.4 has 989 TFLOP/s.",
        ),
        Erratum(
            "B2",
            "paper",
            PARAMETERS,
            "Table 5 (report: Table 9)",
            "parameters of WAN2.1-T2V-1.3B",
            (
                Figure("layers of the release", PAPER.layers, SMALL.layers),
                Figure("width", PAPER.hidden, SMALL.hidden),
                Figure("width of the MLP", PAPER.ffn, SMALL.ffn),
                Figure("weights of all blocks", PAPER.block_parameters, SMALL.block_parameters),
            ),
            "wrong",
            "They are the defaults of the model's class, which no release uses.",
        ),
        Erratum(
            "B3",
            "paper",
            PARAMETERS,
            "3.4, Table 5",
            "mu, sustained over peak rate, by regression on all measurements",
            (
                Figure(
                    "from 410 s, the paper's parameters",
                    UTILISATION,
                    float(utilisation(paper_flop(), measured.latency_s)),
                    tolerance=WITHIN,
                ),
                Figure(
                    "from 410 s, the released model and its tokens",
                    UTILISATION,
                    float(utilisation(released_flop(), measured.latency_s)),
                ),
                Figure(
                    "from 410 s, the released model and the paper's tokens",
                    UTILISATION,
                    float(utilisation(wide, measured.latency_s)),
                ),
            ),
            "wrong",
            f"It makes up for a model {excess:.2f} times too large (B2); it is no utilisation of the board.",
        ),
        Erratum(
            "B4",
            "paper",
            PARAMETERS,
            "Table 4",
            "measured time and GPU energy of WAN2.1-T2V-1.3B, which the model predicts",
            (
                Figure("time", measured.latency_s, float(cost.latency_s), "s", WITHIN),
                Figure("energy at 700 W", measured.gpu_wh, float(cost.energy_wh), "Wh", WITHIN),
                Figure(
                    "time with the released model at the same mu",
                    measured.latency_s,
                    float(latency_s(released_flop())),
                    "s",
                    role="beside",
                ),
            ),
            cause="As it must: mu was fitted to such points (B3).",
        ),
        Erratum(
            "B22",
            "paper",
            PARAMETERS,
            "appendix B and 3.4",
            "mu is about 0.4 in the appendix, 0.456 in the text",
            (Figure("the text's mu", 0.4, UTILISATION, tolerance=2 * ROUND),),
            "inconsistent",
        ),
    )


def _parts() -> tuple[Erratum, ...]:
    flop, released = paper_flop(), released_flop()
    passes = STEPS * PASSES
    again = float(flop.timestep) * (passes - 1) / total(flop)
    gated = text_flop(3)
    rows = float(convolution_flop("table", HEIGHT, WIDTH, T))
    whole = float(convolution_flop("wan21", HEIGHT, WIDTH, T))
    share = float(released.vae_conv + released.vae_mid) / total(released)
    return (
        Erratum(
            "B5",
            "paper",
            PARAMETERS,
            "equations 10 and 3.4",
            "the timestep's FLOP have g S in equation 10, and 3.4 multiplies by S g once more",
            (Figure("passes over the timestep MLP in a video", passes**2, passes, "passes"),),
            "typo",
            f"Without effect: {number(again)} of the total. Equation 14 is right.",
        ),
        Erratum(
            "B6",
            "paper",
            PARAMETERS,
            "3.2, equation 1",
            "latent frames are 1 + T/4",
            (
                Figure(
                    "tokens of the default video",
                    float(token_count(HEIGHT, WIDTH, T)),
                    float(token_count(HEIGHT, WIDTH, T, "exact")),
                    "tokens",
                ),
            ),
            "approximate",
            "The encoder makes 1 + floor(T/4); for T = 4k + 1 the rule has a quarter of a frame more.",
        ),
        Erratum(
            "B7",
            "paper",
            PARAMETERS,
            "Table 5, Table 6",
            "11 convolutions in the decoder",
            (
                Figure("rows of Table 6 that are convolutions", 11, len(DECODERS["table"])),
                Figure(
                    "convolutions of the released decoder",
                    11,
                    sum(row.times for row in DECODERS["wan21"]),
                    role="beside",
                ),
                Figure("FLOP of the rows, of the released decoder", rows, whole, "FLOP", role="beside"),
            ),
            cause="Rows, not convolutions: repetitions and the stage at full resolution are left out. "
            f"Small, as the decoder is {share:.1%} of a video.",
        ),
        Erratum(
            "B8",
            "paper",
            PARAMETERS,
            "equations 8 and 9",
            "the text encoder's MLP has two matrices",
            (Figure("FLOP of the encoder, gated with three", text_flop(), gated, "FLOP"),),
            "wrong",
            f"The encoder used is gated. {gated / text_flop() - 1:.0%} of the encoder, "
            f"{number((gated - text_flop()) / total(flop))} of a video.",
        ),
    )


def _scaling() -> tuple[Erratum, ...]:
    one = total(paper_flop())
    tokens = token_count(HEIGHT, WIDTH, T)
    cross = [float(pass_flop(PAPER, times * tokens).cross_attention) for times in (1, 2)]
    wide, tall = 3520, 1980

    def grown(*size: int) -> float:
        return total(paper_flop(*size)) / one

    return (
        Erratum(
            "B9",
            "paper",
            SCALING,
            "6, 3.6",
            "twice a dimension is about 4 times the compute, H and W together 16 times; cross-attention is "
            "quadratic in the tokens; half the steps are half of it",
            (
                Figure("twice the height", 4, grown(2 * HEIGHT), tolerance=2 * ROUND),
                Figure("twice the frames", 4, grown(HEIGHT, WIDTH, 2 * T), tolerance=2 * ROUND),
                Figure("twice both sides", 16, grown(2 * HEIGHT, 2 * WIDTH), tolerance=2 * ROUND),
                Figure("half the steps", 0.5, grown(HEIGHT, WIDTH, T, STEPS // 2)),
                Figure(
                    "exponent of cross-attention",
                    2,
                    log2(cross[1] / cross[0]),
                    tolerance=ROUND,
                    fault="wrong",
                ),
            ),
            "approximate",
            "Projections and MLP are linear in the tokens. Cross-attention has a fixed number of text "
            "tokens, so it is linear too.",
        ),
        Erratum(
            "B14",
            "paper",
            SCALING,
            "appendix B",
            "far more than 1e4 tokens in all runs",
            (
                Figure(
                    "256 x 256, 81 frames, at least",
                    1e4,
                    float(token_count(256, 256, T)),
                    "tokens",
                    relation="<=",
                ),
                Figure(
                    "720 x 1280, 4 frames, at least",
                    1e4,
                    float(token_count(HEIGHT, WIDTH, 4)),
                    "tokens",
                    relation="<=",
                ),
            ),
            "wrong",
            "Not at the lower ends of the paper's own sweeps. Both are above the thresholds all the same.",
        ),
        Erratum(
            "B15",
            "paper",
            SCALING,
            "4.2",
            "sizes up to 3520 x 1980, both divisible by 8",
            (
                Figure("remainder of 3520", 0, wide % 8, "pixels"),
                Figure("remainder of 1980", 0, tall % 8, "pixels"),
            ),
            "wrong",
            f"1980 / 8 is {tall / 8:g}; the pipeline rounds.",
        ),
        Erratum(
            "B16",
            "paper",
            SCALING,
            "4.2",
            "4 to 100 frames in steps of 4, said to be the model's constraint",
            tuple(
                Figure(
                    f"frames that come out when {frames} are asked for",
                    frames,
                    float(FRAMES["c"](np.asarray(frames, float))),
                    "frames",
                )
                for frames in (4, 100)
            ),
            "wrong",
            "The model makes 4k + 1 frames, and the pipeline rounds what it is asked for.",
        ),
    )
