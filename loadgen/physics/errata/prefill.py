"""The report's roofline of prefill: its section 3.4.1 and appendix A.2; A1 to A4 and A12 to A19."""

from __future__ import annotations

from loadgen.physics.errata.digits import number
from loadgen.physics.errata.erratum import ROUND, Erratum, Figure
from loadgen.physics.errata.study import LLAMA, both, forms, operation, roofline
from loadgen.physics.study.closed import switching
from loadgen.physics.study.llm import EFFICIENCIES

PREFILL = "3.4.1 and A.2: the roofline of prefill"

_MAIN, _APPENDIX = EFFICIENCIES["main"], EFFICIENCIES["appendix"]


def entries() -> tuple[Erratum, ...]:
    """A1 to A4 and A12 to A19."""
    return (*_prefill(), *_prefill_tables())


def _prefill() -> tuple[Erratum, ...]:
    n, h, ffn, v = LLAMA.layers, LLAMA.hidden, LLAMA.ffn, LLAMA.vocabulary
    appendix, main = roofline("appendix"), forms("main")
    value_s = appendix.word_bytes / appendix.bytes_per_s
    return (
        Erratum(
            "A1",
            "report",
            PREFILL,
            "3.4.1, Table 5",
            "one pair of efficiencies, said to be used throughout; the appendix lists another",
            (
                Figure("compute efficiency, text and Table 5", _MAIN.compute, _APPENDIX.compute),
                Figure("bandwidth efficiency, text and Table 5", _MAIN.bandwidth, _APPENDIX.bandwidth),
                Figure(
                    "end of the constant regime in 3.4.1, const / gamma at 0.675 / 0.443",
                    60,
                    float(main.linear_from_tokens),
                    "tokens",
                    2 * ROUND,
                    role="cause",
                ),
                Figure(
                    "the same in A.2.1, const / gamma at 0.7 / 0.28",
                    100,
                    float(forms("appendix").linear_from_tokens),
                    "tokens",
                    2 * ROUND,
                    role="cause",
                ),
                Figure(
                    "fitted beta of 3.4.1, eta at 0.675",
                    1.17e-8,
                    float(main.eta_s),
                    "s/token^2",
                    role="cause",
                ),
            ),
            "inconsistent",
            "Two calibrations. The body was written with the newer pair and the appendix with the older: "
            "each text's end of the constant regime is that of its own pair.",
        ),
        Erratum(
            "A2",
            "report",
            PREFILL,
            "A.2.1, constant regime",
            "time to read the weights once",
            (
                *both("const", 2.63e-2, "const_s", "s"),
                Figure(
                    "without Q, K and V, at 0.28",
                    2.63e-2,
                    h * (3 * n * ffn + v) * value_s,
                    "s",
                    role="cause",
                ),
            ),
            "not reproduced",
            "The number leaves out the attention projections that the printed formula has.",
        ),
        Erratum(
            "A3",
            "report",
            PREFILL,
            "A.2.1, linear regime",
            "gamma, compute time of a prompt token",
            (
                *both("gamma", 2.40e-4, "gamma_s", "s/token"),
                Figure(
                    "MLP alone, at 0.7",
                    2.40e-4,
                    6 * n * h * ffn / appendix.flop_per_s,
                    "s/token",
                    role="cause",
                ),
            ),
            "not reproduced",
            "Only the MLP's products are in the number.",
        ),
        Erratum(
            "A4",
            "report",
            PREFILL,
            "A.2.1, quadratic regime",
            "eta, attention's compute time of a pair of tokens",
            (
                *both("eta as printed", 1.68e-8, "eta_printed_s", "s/token^2"),
                Figure(
                    "factor 6 for 4, at 0.7",
                    1.68e-8,
                    6 * n * h / appendix.flop_per_s,
                    "s/token^2",
                    role="cause",
                ),
            ),
            "not reproduced",
            f"The number has 6 FLOP where the formula has 4. Table 7 adds 5 n_q to 4 h_q, which makes eta "
            f"{number(float(forms('appendix').eta_s))} s/token^2.",
        ),
        Erratum(
            "A12",
            "report",
            PREFILL,
            "A.2.1, quadratic regime",
            "from 30,000 tokens on the quadratic term is at least 10 times the linear one",
            (
                Figure(
                    "eta s / gamma at 30,000 tokens",
                    10,
                    30_000 / float(main.quadratic_from_tokens),
                    tolerance=0.0,
                    relation="<=",
                ),
                Figure(
                    "the same with the output projection",
                    10,
                    30_000 / float(forms("main", "dominant+wo").quadratic_from_tokens),
                    tolerance=0.0,
                    relation="<=",
                ),
                Figure(
                    "prompt at which it is 10, beside the longest context of Table 6",
                    LLAMA.max_position_embeddings,
                    10 * float(main.quadratic_from_tokens),
                    "tokens",
                    role="beside",
                ),
            ),
            "wrong",
            "At 30,000 tokens the two are about equal; a tenfold excess lies beyond the model's context.",
        ),
    )


def _prefill_tables() -> tuple[Erratum, ...]:
    raw, main = switching(roofline("raw")), switching(roofline("main"))
    q = operation("q", 2 * raw.q_o_rows)
    prompt = 1200
    flash = operation("flash", prompt)
    h, layers = LLAMA.hidden, LLAMA.layers
    values = roofline("raw").kv_width + LLAMA.heads
    full = roofline("main", "full")
    summed_s = sum(
        float(row.flop) / full.flop_per_s + float(row.traffic_bytes) / full.bytes_per_s
        for row in full.prefill_operations(prompt)
    )
    return (
        Erratum(
            "A13",
            "report",
            PREFILL,
            "Table 7, switching lengths",
            "prompt lengths at which operations turn from memory bound to compute bound",
            (
                Figure("Q projection, raw peaks", 40.8, raw.q_o_rows, "tokens"),
                Figure("output projection, raw peaks", 40.80, raw.q_o_rows, "tokens"),
                Figure("MLP, raw peaks", 40.51, raw.ffn_rows, "tokens"),
                Figure("attention, raw peaks", 99.59, raw.flash_tokens, "tokens"),
                Figure("Q projection, 0.675 / 0.443", 40.8, main.q_o_rows, "tokens", role="beside"),
                Figure("attention, 0.675 / 0.443", 99.59, main.flash_tokens, "tokens", role="beside"),
            ),
            cause="With the raw peaks only. Efficiencies cancel only where both are equal, and neither "
            "pair's are.",
        ),
        Erratum(
            "A14",
            "report",
            PREFILL,
            "Table 7, K and V",
            "switching length of the K and V projections",
            (Figure("K and V projections, raw peaks", 42.5, raw.k_v_rows, "tokens"),),
            "typo",
            "A digit was lost: 42.05.",
        ),
        Erratum(
            "A15",
            "report",
            PREFILL,
            "captions of Tables 7 and 8",
            "memory is what limits beyond the switching length; decode attention turns at some context",
            (
                Figure(
                    "compute over memory time of Q at twice its switching length, at most 1 if memory limits",
                    1,
                    (float(q.flop) / roofline("raw").flop_per_s)
                    / (float(q.traffic_bytes) / roofline("raw").bytes_per_s),
                    tolerance=0.0,
                    relation=">=",
                ),
                Figure(
                    "compute over memory time of decode attention at an endless context, above 1 if it turns",
                    1,
                    (4 * roofline("raw").q_width + 5 * LLAMA.heads)
                    / (values * roofline("main").ridge_flop_per_value),
                    tolerance=0.0,
                    relation="<=",
                ),
            ),
            "wrong",
            "It is the other way around: short is memory bound, long compute bound. Decode attention never "
            "turns.",
        ),
        Erratum(
            "A16",
            "report",
            PREFILL,
            "A.2.1, dominant operations",
            "attention costs about 9 b s^2 h_q FLOP",
            (
                Figure(
                    "FLOP of Table 7 over b s^2 h_q",
                    9,
                    float(flash.flop) / (layers * prompt**2 * h),
                    "FLOP",
                    ROUND,
                ),
                Figure("4 + 5 with h_q for n_q", 9, 4 + 5, "FLOP", role="cause"),
            ),
            "wrong",
            "The table's 5 n_q was read as 5 h_q.",
        ),
        Erratum(
            "A17",
            "report",
            PREFILL,
            "A.2.1 and Table 7",
            "the LM head costs 2 b s h_q V FLOP in the text, 2 b h_q V in the table",
            (
                Figure(
                    "positions the LM head is applied to, s = 1200",
                    prompt,
                    float(operation("lm_head", prompt).flop) / (2 * h * LLAMA.vocabulary),
                    "positions",
                ),
            ),
            "inconsistent",
            "The table is right for generation: only the last position's logits are needed.",
        ),
        Erratum(
            "A18",
            "report",
            PREFILL,
            "Tables 7 and 8, equations 3 and 8",
            "values moved by attention: b h_kv l and b n_q l in decode, b n_q s^2 in prefill",
            (
                Figure(
                    "values a token of context in decode, keys and values of all KV heads",
                    values,
                    2 * roofline("raw").kv_width,
                    "values",
                ),
                Figure(
                    "prefill of 2999 tokens, full scope, 0.675 / 0.443, beside a run by the authors",
                    float(full.prefill_s(2999)),
                    0.956,
                    "s",
                    role="beside",
                    source="rows shown in an older notebook of the authors' repository",
                ),
            ),
            "wrong",
            "A decode step reads keys and values, and a fused kernel writes no scores, so the n_q terms "
            "should not be there. The mask's factor 1/2 is missing from the FLOP of prefill.",
        ),
        Erratum(
            "A19",
            "report",
            PREFILL,
            "3.4.1, modelling assumptions",
            "the model assumes no overlap of arithmetic and traffic and so bounds the time from above",
            (
                Figure(
                    "full prefill of 1200 tokens, at least the sum of both times of every operation",
                    float(full.prefill_s(prompt)),
                    summed_s,
                    "s",
                    relation=">=",
                ),
            ),
            "inconsistent",
            "The larger of the two times is complete overlap inside an operation, a lower bound; the "
            "appendix does call the two asynchronous.",
        ),
    )
