"""Energy per request against rate and against spacing, on the engine alone, beside reference figures.

    python benchmarks/spacing.py [--requests 3000] [--seeds 5] [--figure docs/energy_vs_spacing.png]

Llama-3.1-8B in bfloat16 on a simulated H100, TGI's default policy, no HTTP; idle
energy included from the first arrival to the last completion. Random gaps are
scaled to exactly the mean asked for, so patterns are compared at equal realised
rate. Mean and range over seeds; in brackets the figure of an independent
prototype of the same model, and the difference.

The prototype's gaps were not scaled: where energy is nearly idle power times gap
(5 s), its patterns differ by more than spacing can explain. The last table
therefore takes from that row, pattern by pattern, the mean gap that the
prototype must have realised, and compares the other rows at that rate.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from loadgen.arrivals import Constant, Gamma, Poisson, Uniform
from loadgen.emulation import Jobs, constant_lengths, simulate
from loadgen.launch import Launch
from loadgen.server.deployment import Deployment
from loadgen.types import ArrivalProcess, Floats

DEPLOYMENT = Deployment(
    Launch(model="llama-3.1-8b", gpu="h100-sxm", dtype="bfloat16", max_concurrent_requests=10**6)
)
IDLE_W = DEPLOYMENT.gpu.context_idle_w
PATTERNS: dict[str, ArrivalProcess] = {
    "fixed": Constant(1.0),
    "uniform (0, 2g)": Uniform(0.0, 2.0),
    "Poisson": Poisson(1.0),
    "gamma, CV 2": Gamma(1.0, 0.25),
}
RATE_REFERENCE_J = {
    0.01: 12_700, 0.1: 1582, 0.5: 503, 1: 310, 2: 171, 4: 100, 8: 62.5, 12: 48.7, 16: 42.6,
}  # fmt: skip
"""Rate per second to J per request, 1,300 prompt and 250 reply tokens, Poisson."""
SPACING_REFERENCE_J = {
    0.05: (30.6, 30.4, 30.4, 31.1),
    0.1: (46.1, 46.0, 46.0, 43.3),
    0.175: (68.1, 67.9, 66.2, 60.4),
    0.25: (89.9, 88.4, 83.3, 72.1),
    0.5: (149, 138, 129, 114),
    1.0: (212, 207, 199, 185),
    5.0: (691, 703, 692, 700),
}
"""Mean gap in s to J per request by pattern, 1,300 prompt and 50 reply tokens."""
GAPS_S = tuple(SPACING_REFERENCE_J)
STUDY_GAP_S, STUDY_WH = 0.05, 1.1e-3


def unit_times(process: ArrivalProcess, n: int, seed: int) -> Floats:
    """``n`` arrivals from 0 on, their mean gap exactly 1."""
    times = process.times(n, np.random.default_rng(seed))
    since_first = times - times[0]
    return np.asarray(since_first * ((n - 1) / since_first[-1]), dtype=np.float64)


def energy_per_request_j(times_s: Floats, reply_tokens: int, prompt_tokens: int = 1300) -> float:
    jobs = Jobs(times_s, times_s, constant_lengths(len(times_s), prompt_tokens, reply_tokens))
    joules = simulate(DEPLOYMENT, jobs).per_success_j
    assert joules is not None
    return joules


def cell(joules: list[float], reference_j: float) -> str:
    mean = float(np.mean(joules))
    spread = "" if math.isclose(min(joules), max(joules)) else f" ({min(joules):.4g}-{max(joules):.4g})"
    return f"{mean:.4g}{spread} [{reference_j:g}, {100 * (mean / reference_j - 1):+.1f} %]"


def realised_gap_s(times: list[Floats], gap_s: float, reference_j: float) -> float:
    """The mean gap at which the energy is the reference's, found by false position around ``gap_s``."""
    for _ in range(8):
        joules = float(np.mean([energy_per_request_j(t * gap_s, 50) for t in times]))
        # Energy grows by idle power times gap, a little less where requests overlap.
        gap_s += (reference_j - joules) / IDLE_W
    return gap_s


def draw(table: dict[str, list[list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150)
    for (name, rows), marker in zip(table.items(), "osD^", strict=True):
        wh = [np.array(joules) / 3.6 for joules in rows]  # J -> mWh
        axes.plot(GAPS_S, [row.mean() for row in wh], marker=marker, ms=4, label=name)
        axes.fill_between(GAPS_S, [row.min() for row in wh], [row.max() for row in wh], alpha=0.15)
    gaps_s = np.geomspace(0.04, 6, 50)
    axes.plot(gaps_s, IDLE_W * gaps_s / 3.6, "k--", lw=1, label=f"idle floor, model loaded ({IDLE_W:g} W)")
    axes.plot([STUDY_GAP_S], [STUDY_WH * 1e3], "r*", ms=13, label="published, fixed 50 ms: below the floor")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="mean gap between requests (s)",
        ylabel="GPU energy per request (mWh), simulated",
    )
    axes.set_title("Llama-3.1-8B, bf16, H100, TGI batching; 1,300 prompt + 50 reply tokens", fontsize=10)
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    times = {
        name: [unit_times(p, args.requests, seed) for seed in range(1 if name == "fixed" else args.seeds)]
        for name, p in PATTERNS.items()
    }
    print(
        f"J per request, simulated; {args.requests} requests, {args.seeds} seeds: mean (min-max) [reference]"
    )

    print("\n1,300 / 250 tokens, Poisson\n\n| rate (1/s) | J |\n|---|---|")
    for rate, reference_j in RATE_REFERENCE_J.items():
        joules = [energy_per_request_j(t / rate, 250) for t in times["Poisson"]]
        print(f"| {rate:g} | {cell(joules, reference_j)} |", flush=True)

    header = "| gap (s) | " + " | ".join(times) + " |\n|---|" + "---|" * len(times)
    print(f"\n1,300 / 50 tokens, equal mean gap\n\n{header}")
    table: dict[str, list[list[float]]] = {name: [] for name in times}
    for gap_s, references_j in SPACING_REFERENCE_J.items():
        cells = []
        for (name, draws), reference_j in zip(times.items(), references_j, strict=True):
            table[name].append([energy_per_request_j(t * gap_s, 50) for t in draws])
            cells.append(cell(table[name][-1], reference_j))
        print(f"| {gap_s:g} | " + " | ".join(cells) + " |", flush=True)

    last_s = GAPS_S[-1]
    factors = [
        realised_gap_s(draws, last_s, reference_j) / last_s
        for draws, reference_j in zip(times.values(), SPACING_REFERENCE_J[last_s], strict=True)
    ]
    print(f"\nThe same at the mean gap of the reference, from its row at {last_s:g} s\n\n{header}")
    print("| mean gap / g | " + " | ".join(f"{factor:.3f}" for factor in factors) + " |")
    for gap_s, references_j in SPACING_REFERENCE_J.items():
        cells = [
            cell([energy_per_request_j(t * gap_s * factor, 50) for t in draws], reference_j)
            for draws, factor, reference_j in zip(times.values(), factors, references_j, strict=True)
        ]
        print(f"| {gap_s:g} | " + " | ".join(cells) + " |", flush=True)
    if args.figure:
        draw(table, args.figure)


if __name__ == "__main__":
    main()
