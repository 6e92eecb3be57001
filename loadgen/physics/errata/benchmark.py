"""The paper's benchmark of seven models, its Tables 2 and 4: B17 to B21 and B23."""

from __future__ import annotations

from loadgen.physics.errata.erratum import ROUND, Erratum, Figure
from loadgen.physics.errata.published import (
    CAMPAIGN,
    CAMPAIGN_SOURCE,
    CODECARBON_RAM_W,
    LTX_FIRST_STAGE_S,
    VIDEOS,
)
from loadgen.physics.video import POWER_W

SECTION = "5.2, Tables 2 and 4: the benchmark"
LIGHT, LTX = "AnimateDiff", "LTX-Video-0.9.7-dev"
WAN, LARGE_WAN = "WAN2.1-T2V-1.3B", "WAN2.1-T2V-14B"


def entries() -> tuple[Erratum, ...]:
    """B17 to B21 and B23."""
    return (*_settings(), *_results())


def _settings() -> tuple[Erratum, ...]:
    others = [row.steps for name, row in VIDEOS.items() if name != LIGHT]
    return (
        Erratum(
            "B17",
            "paper",
            SECTION,
            "5.2, Table 2",
            "4 steps for AnimateDiff, 60 to 64 for the others",
            (
                Figure("fewest steps of the others in Table 2", 60, min(others), "steps"),
                Figure("most", 64, max(others), "steps"),
            ),
            "inconsistent",
            "The sentence has the numbers of older metadata of the runs.",
        ),
        Erratum(
            "B18",
            "paper",
            SECTION,
            "abstract, 1, 4.3, 5.2",
            "six models in one place, seven in another; 50 prompts of each",
            (
                Figure("models of Table 4", 6, len(VIDEOS), "models"),
                Figure(
                    "prompts of most models in the public table",
                    50,
                    CAMPAIGN[LIGHT].n,
                    "prompts",
                    role="beside",
                    source=CAMPAIGN_SOURCE,
                ),
            ),
            "inconsistent",
            "The public table is of an earlier campaign than Table 4.",
        ),
        Erratum(
            "B23",
            "paper",
            SECTION,
            "3.1, 3.4",
            "Pavani et al. (2025) cited for the utilisation of H100s",
            (),
            "wrong",
            "By its title in the list of references that paper is about random partitions in space and "
            "mosquito-borne diseases.",
        ),
    )


def _results() -> tuple[Erratum, ...]:
    ltx, light, wan, large = VIDEOS[LTX], VIDEOS[LIGHT], VIDEOS[WAN], VIDEOS[LARGE_WAN]
    return (
        Erratum(
            "B19",
            "paper",
            SECTION,
            "Table 4, LTX-Video",
            "9.7 s and 3.16 Wh of GPU",
            (
                Figure("mean power, at most the board's limit", ltx.gpu_w, POWER_W, "W", relation="<="),
                Figure(
                    "seconds that its RAM energy stands for, at CodeCarbon's 38 W",
                    ltx.latency_s,
                    ltx.ram_wh * 3600 / CODECARBON_RAM_W,
                    "s",
                ),
                Figure(
                    "measured seconds of its first stage",
                    ltx.latency_s,
                    LTX_FIRST_STAGE_S,
                    "s",
                    ROUND,
                    role="cause",
                    source=CAMPAIGN_SOURCE,
                ),
                Figure(
                    "measured seconds of all stages",
                    ltx.latency_s,
                    CAMPAIGN[LTX].latency_s,
                    "s",
                    role="beside",
                    source=CAMPAIGN_SOURCE,
                ),
                Figure(
                    "measured energy of all stages",
                    ltx.gpu_wh,
                    CAMPAIGN[LTX].gpu_wh,
                    "Wh",
                    ROUND,
                    role="cause",
                    source=CAMPAIGN_SOURCE,
                ),
            ),
            "not physical",
            "The time is of the first of three stages, the energy of all of them; over "
            f"{CAMPAIGN[LTX].latency_s:.1f} s it is {ltx.gpu_wh * 3600 / CAMPAIGN[LTX].latency_s:.0f} W.",
        ),
        Erratum(
            "B20",
            "paper",
            SECTION,
            "5.2, 6",
            "energies of a video and how they compare",
            (
                Figure("WAN2.1-1.3B, all parts", 90, wan.total_wh, "Wh", ROUND),
                Figure("over an image, 2.9 Wh", 30, wan.total_wh / 2.9, tolerance=ROUND),
                Figure("over a text, 0.047 Wh", 2000, wan.total_wh / 0.047, tolerance=ROUND),
                Figure("over a classification, 0.002 Wh", 45_000, wan.total_wh / 0.002, tolerance=ROUND),
                Figure("WAN2.1-14B, all parts", 415, large.total_wh, "Wh"),
                Figure("AnimateDiff, all parts", 0.14, light.total_wh, "Wh", 1e-2),
                Figure("largest over smallest", 3000, large.total_wh / light.total_wh, tolerance=ROUND),
                Figure(
                    "smallest share of the GPU, above 80 %",
                    80,
                    100 * min(row.gpu_share for row in VIDEOS.values()),
                    "%",
                    0.0,
                    "<=",
                ),
                Figure(
                    "largest share of the GPU, up to 90 %",
                    90,
                    100 * max(row.gpu_share for row in VIDEOS.values()),
                    "%",
                    0.0,
                    ">=",
                ),
            ),
            cause="The energies are of GPU, CPU and RAM together.",
        ),
        Erratum(
            "B21",
            "paper",
            SECTION,
            "3.5",
            "a board generating a video draws about its limit of 700 W",
            (
                *(Figure(f"{name}", POWER_W, VIDEOS[name].gpu_w, "W", ROUND) for name in (WAN, LARGE_WAN)),
                *(
                    Figure(name, POWER_W, row.gpu_w, "W", role="beside")
                    for name, row in VIDEOS.items()
                    if name not in (WAN, LARGE_WAN, LTX)
                ),
            ),
            cause="For WAN, of which the section speaks. The other models draw less.",
        ),
    )
