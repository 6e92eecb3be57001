"""Statements of both documents outside the lists A and B: F1 to F12; what nothing can check: N1 to N8."""

from __future__ import annotations

from loadgen.physics.errata.benchmark import LARGE_WAN, LTX, WAN
from loadgen.physics.errata.benchmark import SECTION as BENCHMARK
from loadgen.physics.errata.decode import DECODE
from loadgen.physics.errata.digits import number
from loadgen.physics.errata.energy import REPLY
from loadgen.physics.errata.erratum import ROUND, Document, Erratum, Figure
from loadgen.physics.errata.paper import PARAMETERS, SCALING, STEPS, T, paper_flop, released_flop
from loadgen.physics.errata.prefill import PREFILL
from loadgen.physics.errata.published import (
    BASELINE_WH,
    CAMPAIGN,
    CAMPAIGN_SOURCE,
    CPU_WH,
    FIXED_WH,
    GPU_WH,
    HOUSEHOLD_KWH_A_YEAR,
    RAM_WH,
    VIDEOS,
    WAN_480P_S,
)
from loadgen.physics.errata.serving import NAMES
from loadgen.physics.errata.study import H100, LLAMA, forms, roofline
from loadgen.physics.study.closed import switching
from loadgen.physics.video import POWER_W, latency_s, token_count, utilisation

REQUESTS_A_DAY = 1e6
UNCHECKED = "what the texts give nothing to check by"


def entries() -> tuple[Erratum, ...]:
    """F1 to F12."""
    return (*_report(), *_roofline(), *_paper())


def _report() -> tuple[Erratum, ...]:
    household_kwh = HOUSEHOLD_KWH_A_YEAR / 365

    def daily_kwh(wh: float) -> float:
        return wh * REQUESTS_A_DAY / 1000

    return (
        Erratum(
            "F1",
            "report",
            REPLY,
            "4.5",
            "a million requests a day at 0.12 Wh, and at 1.1e-3 Wh",
            (
                Figure("energy of a day", 120, daily_kwh(BASELINE_WH), "kWh"),
                Figure("energy of a day, optimised", 1.1, daily_kwh(FIXED_WH), "kWh"),
                Figure("a French household's day", 11.7, household_kwh, "kWh"),
                Figure(
                    "households, over",
                    10,
                    daily_kwh(BASELINE_WH) / household_kwh,
                    tolerance=0.0,
                    relation="<=",
                ),
                Figure("households, at 0.202 Wh", 10, daily_kwh(GPU_WH) / household_kwh, role="beside"),
                Figure(
                    "households, with CPU and RAM",
                    10,
                    daily_kwh(GPU_WH + CPU_WH + RAM_WH) / household_kwh,
                    role="beside",
                ),
            ),
            cause="The arithmetic; for what 0.12 and 1.1e-3 Wh are worth see A29 and A31.",
        ),
        Erratum(
            "F2",
            "report",
            REPLY,
            "3.2",
            "the GPU takes nearly ten times what CPU or RAM take",
            (
                Figure("GPU over CPU", 10, GPU_WH / CPU_WH, tolerance=4 * ROUND),
                Figure("GPU over RAM", 10, GPU_WH / RAM_WH, tolerance=4 * ROUND),
            ),
        ),
        Erratum(
            "F3",
            "report",
            NAMES,
            "4.2.1",
            "tensor cores give up to 15 times the throughput",
            (
                Figure(
                    "dense 16-bit over float32 rate of an H100",
                    15,
                    H100.peak_flop_per_s["bfloat16"] / H100.peak_flop_per_s["float32"],
                    tolerance=ROUND,
                ),
            ),
        ),
        Erratum(
            "F4",
            "report",
            NAMES,
            "Tables 5 and 6",
            "constants of the board and of the model",
            (
                Figure("float32 rate", 6.7e13, H100.peak_flop_per_s["float32"], "FLOP/s"),
                Figure("bandwidth", 3.35e12, H100.bandwidth_bytes_per_s, "B/s"),
                Figure("layers", 32, LLAMA.layers),
                Figure("vocabulary", 128_256, LLAMA.vocabulary, tolerance=0.0),
                Figure("query heads", 32, LLAMA.heads),
                Figure("KV heads", 8, LLAMA.kv_heads),
                Figure("width", 4096, LLAMA.hidden),
                Figure("width of the MLP", 14_336, LLAMA.ffn),
            ),
        ),
    )


def _roofline() -> tuple[Erratum, ...]:
    main = switching(roofline("main"))
    prompt = 1200
    dominant, wide, full = (
        float(roofline("main", scope).prefill_s(prompt)) for scope in ("dominant", "dominant+wo", "full")
    )
    board = roofline("main", "full")
    most = max(
        float(row.flop) * board.bytes_per_s / (board.flop_per_s * float(row.traffic_bytes))
        for row in board.step_operations(LLAMA.max_position_embeddings)
    )
    slope = 2 * 3.91e-7
    return (
        Erratum(
            "F5",
            "report",
            PREFILL,
            "3.4.1",
            "projections, MLP and attention are compute bound above 100 tokens",
            (
                Figure("projections of K and V", 100, main.k_v_rows, "tokens", relation=">="),
                Figure("attention", 100, main.flash_tokens, "tokens", relation=">="),
            ),
            "inconsistent",
            "100 is attention's switching length at the raw peaks (A13); with the section's own "
            "efficiencies it is later.",
        ),
        Erratum(
            "F6",
            "report",
            PREFILL,
            "A.2.1",
            "the operations left out of equations 2 to 6 take at most a few percent",
            (
                Figure("light operations, s = 1200", 5, 100 * (full / wide - 1), "%", relation=">="),
                Figure(
                    "with the output projection, left out too",
                    5,
                    100 * (full / dominant - 1),
                    "%",
                    relation=">=",
                ),
            ),
            "inconsistent",
            "Right of what the text names. Table 7 lists the output projection, the equations forget it.",
        ),
        Erratum(
            "F7",
            "report",
            DECODE,
            "3.4.1, A.3.2",
            "all operations of a decode step are memory bound at batch 1",
            (
                Figure(
                    "largest compute over memory time, longest context, below",
                    1,
                    most,
                    tolerance=0.0,
                    relation=">=",
                ),
            ),
        ),
        Erratum(
            "F8",
            "report",
            DECODE,
            "A.3.3, delta and lambda",
            "2B, the slope of decode time in s, from the stated B",
            (Figure("twice 3.91e-7", 7.83e-7, slope, "s/token"),),
            cause="Consistent with the stated B, which is not the formula's: "
            f"{number(2 * float(forms('main').b_s))} s/token at 0.675 / 0.443.",
        ),
    )


def _paper() -> tuple[Erratum, ...]:
    large = VIDEOS[LARGE_WAN]
    flop = released_flop("wan2.1-14b")
    predicted_s = float(latency_s(flop))
    tokens = float(token_count(480, 720, T))
    return (
        Erratum(
            "F9",
            "paper",
            PARAMETERS,
            "3.4 and 3.5, Table 5",
            "rate and power of an H100 in the text",
            (
                Figure("dense 16-bit rate", 989e12, H100.peak_flop_per_s["bfloat16"], "FLOP/s"),
                Figure("power limit", POWER_W, H100.tdp_w, "W"),
            ),
        ),
        Erratum(
            "F10",
            "paper",
            SCALING,
            "3.4",
            "1e4 to 1e5 tokens for a few seconds of 480 x 720",
            (
                Figure("81 frames, at least", 1e4, tokens, "tokens", 0.0, "<="),
                Figure("81 frames, at most", 1e5, tokens, "tokens", 0.0, ">="),
            ),
        ),
        Erratum(
            "F11",
            "paper",
            BENCHMARK,
            "3 and Table 4, WAN2.1-T2V-14B",
            "the framework carries over to other models with minor adjustments",
            (
                Figure(
                    "time of the 14B release at the same mu", large.latency_s, predicted_s, "s", 2 * ROUND
                ),
                Figure(
                    "its energy at 700 W",
                    large.gpu_wh,
                    POWER_W * predicted_s / 3600,
                    "Wh",
                    2 * ROUND,
                ),
                Figure(
                    "mu that its time needs", 0.456, float(utilisation(flop, large.latency_s)), role="beside"
                ),
            ),
            "not reproduced",
            "mu is of one wrong set of parameters (B2, B3) and does not carry over.",
        ),
        Erratum(
            "F12",
            "paper",
            BENCHMARK,
            "Table 4",
            "times and GPU energies, beside the public table",
            (
                *(
                    Figure(
                        f"{name}, {what}",
                        stated,
                        given,
                        unit,
                        ROUND,
                        source=f"{CAMPAIGN_SOURCE}, n = {row.n}",
                    )
                    for name, row in CAMPAIGN.items()
                    for what, stated, given, unit in (
                        ("time", VIDEOS[name].latency_s, row.latency_s, "s"),
                        ("energy", VIDEOS[name].gpu_wh, row.gpu_wh, "Wh"),
                    )
                    if (name, what) != (LTX, "time")
                ),
                Figure(
                    f"{WAN} at 480 x 832, predicted, measured",
                    float(latency_s(paper_flop(480, 832, T, STEPS))),
                    WAN_480P_S,
                    "s",
                    role="beside",
                    source=CAMPAIGN_SOURCE,
                ),
            ),
            cause="LTX-Video's time is apart: B19.",
        ),
    )


def unchecked() -> tuple[Erratum, ...]:
    """N1 to N8: stated, but with neither the data nor a formula."""
    said: tuple[tuple[Document, str, str, str], ...] = (
        (
            "report",
            "3.2, Figure 1",
            "spreads of a reply's energies: 0.096, 0.014, 0.010 Wh",
            "needs the replies",
        ),
        ("report", "3.6, Figures 6 and 7", "energy by model size and verbosity", "in figures only"),
        (
            "report",
            "4.2, Figures 8, 16, 17",
            "precisions: up to 4 times less prefill energy, 10 times less time, int8 2 to 3 times more in "
            "decode, int4 like float32",
            "in figures only",
        ),
        (
            "report",
            "4.3, Figures 9, 18, 19",
            "best batch 4 in decode and 2 overall, 25 % worse at 16, 65 % of the energy at batch 1",
            "needs the lengths of the prompts and the runs",
        ),
        ("paper", "3.4", "R^2 of 0.998 of the regression for mu", "the points are in figures only"),
        (
            "paper",
            "Table 3",
            "mean percentage errors 11.6, 14.0, 6.6, 10.5, 1.9, 1.9 %",
            "the points are in figures only; `loadgen theory video --measured` computes them of any table",
        ),
        ("paper", "Table 4", "standard deviations", "needs the runs; not said whether of runs or of prompts"),
        ("paper", "6", "savings of 1.62 by caching and 1.27 by quantisation", "quoted from another paper"),
    )
    return tuple(
        Erratum(
            f"N{i}", document, UNCHECKED, where, stated, (), "not checkable", f"{why[0].upper()}{why[1:]}."
        )
        for i, (document, where, stated, why) in enumerate(said, 1)
    )
