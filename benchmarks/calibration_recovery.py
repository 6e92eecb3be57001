"""Whether `loadgen calibrate` finds constants that are hidden, and how often its 95 % intervals hold them.

    python benchmarks/calibration_recovery.py [--draws 24] [--loads alone|mixed|all] [--gpu h100-sxm]
                                              [--jitter-ms 0.5]

Each draw is a board whose constants are off by what the table says they may be (``hardware.draw``). The
embedded server serves Llama 3.1 8B on it in virtual time: 40 requests one after another, 200 at 4 a second
(Poisson), 200 at 64 in flight. The calibration starts from the table and sees what a client and NVML's
counter see. Printed are, over the draws, the share of the constants inside their intervals, of how many
that the runs told, the median and largest error, and the median half-width; of the constants kept at the
table's value, how many lay within the table's own interval. Everything is simulated.

``--jitter-ms``: every read of the client comes later by an exponential time of this mean, as on a busy
host, and every reading of the counter is stamped later by as much.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from analysis.calibrate import calibrate
from analysis.calibrate.powers import NAMES as POWERS
from analysis.calibrate.rebuild import scenario_of
from analysis.calibrate.times import NAMES as TIMES
from analysis.run import Run, load_run
from loadgen.server.deployment import Deployment
from tests.embedded_runs import POWER, run

PROMPTS = {"source": "synthetic", "max_new_tokens": 128}
LOADS: Mapping[str, Mapping[str, Any]] = {
    "alone": {"pattern": "closed_loop", "requests": 40, "max_in_flight": 1},
    "poisson": {"pattern": "poisson", "rate_rps": 4.0, "requests": 200},
    "batch": {"pattern": "closed_loop", "requests": 200, "max_in_flight": 64},
}
CHOICES = {"alone": ("alone",), "mixed": ("poisson",), "all": tuple(LOADS)}


def runs_of(draw: int, gpu: str, loads: tuple[str, ...], folder: Path, jitter_s: float) -> list[Run]:
    """The runs of one hidden board."""
    server = {"model": "llama-3.1-8b", "gpu": gpu, "dtype": "bfloat16", "hardware": {"draw": draw}}
    made = []
    for name in loads:
        scenario = {
            "name": f"{name}_{draw}",
            "seed": draw,
            "server": server,
            "load": {**LOADS[name], "warmup_requests": 1},
            "prompts": PROMPTS,
            "power": POWER,
        }
        path = run(scenario, folder)
        if jitter_s:
            late(path, jitter_s, draw)
        made.append(load_run(path))
    return made


def late(path: Path, mean_s: float, seed: int) -> None:
    """Delays the client's reads and the stamps of the counter by exponential times."""
    rng = np.random.default_rng(seed)
    lines = []
    for text in (path / "requests.jsonl").read_text().splitlines():
        row = json.loads(text)
        if row["chunk_s"]:
            at_s = np.array(row["chunk_s"])
            chunks = np.maximum.accumulate(at_s + rng.exponential(mean_s, len(at_s))).tolist()
            done_s = max(row["done_s"], chunks[-1])
            row |= {"chunk_s": chunks, "first_s": chunks[0], "done_s": done_s}
        lines.append(json.dumps(row))
    (path / "requests.jsonl").write_text("\n".join(lines) + "\n")
    rows = [json.loads(text) for text in (path / "power.jsonl").read_text().splitlines()]
    instants = sorted({row["t_s"] for row in rows})
    moved = dict(zip(instants, (np.array(instants) + rng.exponential(mean_s, len(instants))), strict=True))
    text = "\n".join(json.dumps(row | {"t_s": float(moved[row["t_s"]])}) for row in rows)
    (path / "power.jsonl").write_text(text + "\n")


def truth(of: Run) -> dict[str, float]:
    """The hidden constants."""
    scenario = scenario_of(of)
    deployment = Deployment(scenario.server.launch(scenario.seed))
    efficiency = deployment.step_model.efficiency
    found = {name: float(getattr(deployment.gpu, name)) for name in POWERS}
    return found | {name: float(getattr(efficiency, name)) for name in TIMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--loads", choices=CHOICES, default="all")
    parser.add_argument("--gpu", default="h100-sxm")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    args = parser.parse_args()
    names = (*TIMES, *POWERS)
    error: dict[str, list[float]] = {name: [] for name in names}
    half: dict[str, list[float]] = {name: [] for name in names}
    held: dict[str, list[bool]] = {name: [] for name in names}
    kept: dict[str, list[bool]] = {name: [] for name in names}
    took_s = []
    for draw in range(args.draws):
        with tempfile.TemporaryDirectory() as folder:
            runs = runs_of(draw, args.gpu, CHOICES[args.loads], Path(folder), args.jitter_ms / 1e3)
            begin_s = time.perf_counter()
            found = calibrate(runs)
            took_s.append(time.perf_counter() - begin_s)
            hidden = truth(runs[0])
        profile = found.profile
        for name in names:
            part = profile.gpu if name in POWERS else profile.efficiency
            value, true = float(getattr(part, name)), hidden[name]
            if name in profile.fitted:
                ends = profile.fitted[name]
                held[name].append(ends.low <= true <= ends.high)
                error[name].append(abs(value / true - 1.0))
                half[name].append((ends.high - ends.low) / 2.0 / value)
            else:
                wide = 1.0 + part.uncertainty[name]
                kept[name].append(value / wide <= true <= value * wide)
    print(
        f"{args.gpu}, {args.draws} draws, loads {', '.join(CHOICES[args.loads])}, "
        f"jitter {args.jitter_ms:g} ms; calibrating takes a median {np.median(took_s):.2f} s; simulated\n"
    )
    print("| constant | inside | median error | largest | median half-width | kept, inside the table's |")
    print("|---|---|---|---|---|---|")
    for name in names:
        row = [f"{sum(held[name])} of {len(held[name])}"]
        row += [f"{100 * f(error[name]):.2g} %" if error[name] else "-" for f in (np.median, np.max)]
        row += [f"{100 * np.median(half[name]):.2g} %" if half[name] else "-"]
        row += [f"{sum(kept[name])} of {len(kept[name])}" if kept[name] else "-"]
        print(f"| {name} | {' | '.join(row)} |")
    told = [inside for name in names for inside in held[name]]
    print(f"\nin all {sum(told)} of {len(told)} inside, {100 * np.mean(told):.1f} %")


if __name__ == "__main__":
    main()
