"""Energy per request against spacing, on the engine alone: the README's picture and a table.

    python benchmarks/spacing.py [--requests 3000] [--seeds 5] [--figure docs/energy_vs_spacing.png]

Llama-3.1-8B in bfloat16 on a simulated H100, 1,300 prompt and 50 reply tokens,
idle energy included from the first arrival to the last completion. Each random
pattern's gaps are scaled to exactly the mean asked for, so patterns are compared
at equal realised load. Prints mean and range over seeds. Simulated, no HTTP.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from loadgen.arrivals import Constant, Gamma, Poisson, Uniform
from loadgen.physics.hardware import GPUS
from loadgen.physics.transformer import DTYPES, MODELS, StepModel
from loadgen.server.engine import Engine, Sequence, TgiPolicy, drive
from loadgen.server.service import derive_limits
from loadgen.types import ArrivalProcess, Floats

GAPS_S = (0.05, 0.1, 0.175, 0.25, 0.5, 1.0, 5.0)
STUDY_GAP_S, STUDY_WH = 0.05, 1.1e-3
MODEL, GPU, DTYPE = MODELS["llama-3.1-8b"], GPUS["h100-sxm"], DTYPES["bfloat16"]


def patterns(gap_s: float) -> dict[str, ArrivalProcess]:
    return {
        "fixed": Constant(gap_s),
        "uniform (0, 2g)": Uniform(0.0, 2 * gap_s),
        "Poisson": Poisson(1 / gap_s),
        "gamma, CV 2": Gamma(1 / gap_s, 0.25),
    }


def energy_per_request_j(times_s: Floats, prompt_tokens: int = 1300, reply_tokens: int = 50) -> float:
    limits = derive_limits(MODEL, GPU, DTYPE)
    engine = Engine(
        StepModel(MODEL, GPU, DTYPE),
        TgiPolicy(limits.max_batch_prefill_tokens),
        limits.max_batch_total_tokens,
    )
    arrivals = ((t, Sequence(k, prompt_tokens, reply_tokens, reply_tokens)) for k, t in enumerate(times_s))
    busy_j = busy_s = end_s = 0.0
    for work in drive(engine, arrivals):
        busy_j += work.power_w * work.duration_s
        busy_s += work.duration_s
        end_s = work.start_s + work.duration_s
    return (busy_j + GPU.context_idle_w * (end_s - busy_s)) / len(times_s)


def draw(table: dict[str, list[list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150)
    for (name, rows), marker in zip(table.items(), "osD^", strict=True):
        wh = np.array(rows) / 3.6  # J -> mWh
        axes.plot(GAPS_S, wh.mean(axis=1), marker=marker, ms=4, label=name)
        axes.fill_between(GAPS_S, wh.min(axis=1), wh.max(axis=1), alpha=0.15)
    gaps_s = np.geomspace(0.04, 6, 50)
    axes.plot(
        gaps_s, GPU.context_idle_w * gaps_s / 3.6, "k--", lw=1, label="idle floor, model loaded (120 W)"
    )
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
    table: dict[str, list[list[float]]] = {name: [] for name in patterns(1.0)}
    print(f"J per request, mean (min-max) over {args.seeds} seeds, {args.requests} requests each; simulated")
    print("| gap (s) | " + " | ".join(table) + " |\n|---|" + "---|" * len(table))
    for gap_s in GAPS_S:
        cells = []
        for name, process in patterns(gap_s).items():
            joules = []
            for seed in range(1 if name == "fixed" else args.seeds):
                times_s = process.times(args.requests, np.random.default_rng(seed))
                times_s = times_s * (gap_s * (args.requests - 1) / times_s[-1])
                joules.append(energy_per_request_j(times_s))
            table[name].append(joules * (args.seeds if name == "fixed" else 1))
            spread = (
                "" if math.isclose(min(joules), max(joules)) else f" ({min(joules):.1f}-{max(joules):.1f})"
            )
            cells.append(f"{np.mean(joules):.1f}{spread}")
        print(f"| {gap_s:g} | " + " | ".join(cells) + " |", flush=True)
    if args.figure:
        draw(table, args.figure)


if __name__ == "__main__":
    main()
