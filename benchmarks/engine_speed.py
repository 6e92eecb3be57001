"""How many requests the engine simulates in a second of one core, without HTTP.

    python benchmarks/engine_speed.py [--requests 20000] [--repetitions 5] [--rate 13]

Llama-3.1-8B in bfloat16 on a simulated H100, 1,300 prompt and 250 reply tokens,
Poisson arrivals, TGI's default policy: with leaping, stepping through every
forward, and stepping with each forward's rows and tokens listed (what the server
does). CPU time of this process, sequences made inside the measured part;
median and range over the repetitions, which are interleaved.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator

import numpy as np

from loadgen.launch import Launch
from loadgen.server.deployment import Deployment
from loadgen.server.engine import Engine, Sequence, drive


def arrivals(times_s: list[float], prompt_tokens: int, reply_tokens: int) -> Iterator[tuple[float, Sequence]]:
    for k, t in enumerate(times_s):
        yield t, Sequence(k, prompt_tokens, reply_tokens, reply_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rate", type=float, default=13.0, help="requests per simulated second")
    parser.add_argument("--prompt-tokens", type=int, default=1300)
    parser.add_argument("--reply-tokens", type=int, default=250)
    args = parser.parse_args()
    deployment = Deployment(Launch(model="llama-3.1-8b", gpu="h100-sxm", dtype="bfloat16"))

    def engine() -> Engine:
        return deployment.engine()

    def run(n: int, leap: bool) -> tuple[float, int, float]:
        rng = np.random.default_rng(1)
        times_s = np.cumsum(rng.exponential(1 / args.rate, n)).tolist()
        work = drive(engine(), arrivals(times_s, args.prompt_tokens, args.reply_tokens), leap=leap)
        steps, joules = 0, 0.0
        gc.collect()
        gc.freeze()
        start_s = time.process_time()
        for _, duration_s, power_w, _, k in work:
            steps += k
            joules += duration_s * power_w
        return time.process_time() - start_s, steps, joules

    modes = {"leaping": (args.requests, True), "stepping": (max(1, args.requests // 10), False)}
    for n, leap in modes.values():
        run(max(1, n // 20), leap)  # warm-up
    results: dict[str, list[tuple[float, int, float]]] = {name: [] for name in modes}
    for _ in range(args.repetitions):
        for name, (n, leap) in modes.items():
            results[name].append(run(n, leap))
    print(
        f"{args.prompt_tokens}/{args.reply_tokens} tokens, Poisson at {args.rate:g}/s, "
        f"{args.repetitions} repetitions, CPU time of one core"
    )
    for name, runs in results.items():
        n = modes[name][0]
        per_s = sorted(n / cpu_s for cpu_s, _, _ in runs)
        step_us = sorted(cpu_s / steps * 1e6 for cpu_s, steps, _ in runs)
        print(
            f"{name:9} n={n}: {statistics.median(per_s):,.0f} requests/s "
            f"({per_s[0]:,.0f}-{per_s[-1]:,.0f}), {statistics.median(step_us):.2f} us a forward, "
            f"{runs[0][1]} forwards, {runs[0][2] / n:.2f} J busy a request"
        )


if __name__ == "__main__":
    main()
