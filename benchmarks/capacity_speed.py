"""How long a capacity search takes, and whether it agrees with the published prototype.

    python benchmarks/capacity_speed.py [--gpus h100-sxm,l40s]

Llama-3.1-8B in bfloat16, 1,300 prompt and 250 reply tokens, Poisson arrivals, TTFT <= 0.5 s and TPOT <=
30 ms for 95 %. CPU seconds of one search (bracket, bisection at n = 1,000, confirmation at 10,000 x 5) on
each board; then an H100 twice against the prototype of serving.md, section 4: with the embedded server's
dispatch time (2.5 ms up to 32 rows, 8 ms beyond and with a prefill), and with 2.5 ms for every step, which is
what the prototype had. Ends with status 1 when a search takes more than 10 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np

from analysis.capacity.fleet import per_good
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.plan_file import read_plan
from analysis.capacity.replica import Replica, ReplicaType, deploy
from analysis.capacity.search import Found, search
from analysis.capacity.workload import workload_of
from analysis.words import interval, number
from loadgen.physics.boards import GPUS
from loadgen.physics.transformer import StepModel

LIMIT_S = 10.0
CONFIRM_N, STREAMS = 10_000, 5
PRICE_H, G_PER_KWH, PUE = 4.02, 400.0, 1.2
PROTOTYPE = {12.0: 0.999, 14.0: 0.841, 16.0: 0.24}
PROTOTYPE_MAX = "13.05 +- 0.21"
PROTOTYPE_AT_13 = "46 J, 12.8 mWh, 8.6e-5 USD, 6.1 mg CO2e"


def question() -> CapacityPlan:
    given = {
        "traffic.rate_rps": 13,
        "lengths.prompt_tokens": 1300,
        "lengths.output_tokens": 250,
        "slo.ttft_s": 0.5,
        "slo.tpot_s": 0.03,
    }
    return read_plan(None, [(key, str(value), "--set") for key, value in given.items()])


def flat(replica: Replica) -> Replica:
    """The same with 2.5 ms of dispatch for every step."""
    deployment, model = replica.deployment, replica.deployment.step_model
    assert isinstance(model, StepModel)
    efficiency = replace(model.efficiency, eager_overhead_s=model.efficiency.graph_overhead_s)
    deployment.step_model = StepModel(model.model, model.gpu, model.dtype, efficiency=efficiency)
    return replica


def timed(replica: Replica) -> tuple[Found | None, float]:
    start_s = time.process_time()
    found = search(replica)
    return found, time.process_time() - start_s


def compare(name: str, replica: Replica) -> None:
    found, _ = timed(replica)
    assert found is not None
    print(f"\nH100, {name}")
    print(f"  highest rate      {number(found.rate_rps, 4)} {interval(found.max_rps, digits=4)} /s")
    print(f"                    prototype {PROTOTYPE_MAX}")
    for rate, published in PROTOTYPE.items():
        shares = [replica.fare(rate, CONFIRM_N, stream).share for stream in range(1, STREAMS + 1)]
        spread = f"{min(shares):.3f} to {max(shares):.3f}"
        print(f"  good at {rate:g}/s      {np.mean(shares):.3f} ({spread}); prototype {published:g}")
    fared = [replica.fare(13.0, CONFIRM_N, stream) for stream in range(1, STREAMS + 1)]
    joules = float(np.mean([f.energy_j / f.n for f in fared]))
    good = [j for f in fared if (j := per_good(f)) is not None]
    wh = joules / 3600
    dollars, mg = PRICE_H / 3600 / 13.0, wh * PUE * G_PER_KWH
    print(f"  a request at 13/s {joules:.1f} J, {1e3 * wh:.1f} mWh, {dollars:.1e} USD, {mg:.1f} mg CO2e")
    print(f"                    prototype {PROTOTYPE_AT_13}")
    print(f"  a good request    {np.mean(good):.1f} J at 13/s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", default=",".join(GPUS), help="boards, with commas between")
    args = parser.parse_args()
    plan = question()
    workload = workload_of(plan)

    def replica(gpu: str) -> Replica:
        return Replica(deploy(plan, ReplicaType(gpu, "bfloat16", 1)), workload, plan.slo)

    slow = False
    print(f"simulated; one search: CPU seconds, highest rate [95 %], n = {CONFIRM_N:,} x {STREAMS}")
    for gpu in args.gpus.split(","):
        found, cpu_s = timed(replica(gpu))
        said = "none" if found is None else f"{number(found.rate_rps)} {interval(found.max_rps)} /s"
        tried = "" if found is None else f", {found.evaluations} simulations"
        print(f"  {gpu:<10} {cpu_s:5.2f} s  {said}{tried}")
        slow |= cpu_s > LIMIT_S
    compare("dispatch time of the embedded server", replica("h100-sxm"))
    compare("2.5 ms for every step, as the prototype", flat(replica("h100-sxm")))
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
