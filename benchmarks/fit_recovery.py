"""Whether fits find constants that are known, and how often their 95 % intervals hold them.

    python benchmarks/fit_recovery.py [--replications 500] [--runs 200] [--draws 4] [--part PART]...

- ``intervals``: t_decode with the study's constants (arXiv 2601.22362), seen with errors of four kinds:
  equal; 5 % of the size; a drift with a correlation time of 10 requests; heavy tails. Prompts of 100
  to 3,000 tokens, replies of 5 to 300 (``narrow``: 1,150 to 1,250 and 10 to 60). Coverage of each term
  by ordinary errors, HC3, and what `analysis.fit` uses (HC3, in blocks of neighbours when residuals
  depend on each other); ``half``: median half-width over the constant.
- ``slices``: the study's E_prefill and E_decode, one request after another, through a counter that
  publishes every 100 ms at an unknown phase and is read every 50 or 100 ms by a clock of its own.
- ``engine``: the embedded server one request at a time, also on boards with other constants
  (``hardware.draw``): which coefficients' intervals hold the least-squares law of the engine's own
  steps, and how far predictions of lengths that were not run are off.
- ``batched``: Poisson arrivals, 4 a second. Joules of a request predicted from its lengths by the study's
  forms fitted to that load, on the same run and on one of another seed, against step-Shapley values; and
  another run's energy divided by the tariff of requests that were alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from analysis.attribution import Attribution
from analysis.fit import Model, fit
from analysis.fit.estimate import solve
from analysis.fit.forms import FORMS, design
from analysis.fit.sample import sample
from analysis.fit.slices import TERMS, joint
from analysis.run import Run, build_run, load_run
from analysis.stats import LEVEL, student
from benchmarks.attribution import LEVELS, score, simulate, true_costs
from loadgen.launch import Hardware, Launch
from loadgen.physics.transformer import StepModel
from loadgen.server.deployment import Deployment
from loadgen.types import Domain, Floats, Reading, Record

DECODE = {"eta": 2.61e-2, "theta": 3.31e-7, "phi": 5.86e-8, "rho": -5.32e-2}
PREFILL_S = (3.18e-4, 1.17e-8, 1.68e-2)
JOULES = {"A": 0.2178, "B": 18.0, "C": 7.668, "D": 1.0332e-3, "E": 0.8}
IDLE_W = 110.0
Errors = Callable[[Floats, np.random.Generator], Floats]


def header(*cells: str) -> None:
    """The head of a table."""
    print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")


def drift(true: Floats, rng: np.random.Generator) -> Floats:
    """A first-order autoregression of 0.9 beside noise of the same size."""
    found = np.zeros(len(true))
    for k in range(1, len(true)):
        found[k] = 0.9 * found[k - 1] + 0.05 * rng.standard_normal()
    return found + 0.1 * rng.standard_normal(len(true))


ERRORS: dict[str, Errors] = {
    "equal": lambda true, rng: 0.1 * rng.standard_normal(len(true)),
    "5 % of size": lambda true, rng: 0.05 * true * rng.standard_normal(len(true)),
    "drift": drift,
    "heavy tails": lambda true, rng: 0.05 * rng.standard_t(3, len(true)),
}


def coverage_of_intervals(replications: int) -> None:
    """Prints the first part."""
    form, names = FORMS["t_decode"], tuple(DECODE)
    constants = np.array(list(DECODE.values()))
    print("\n## intervals: coverage of eta, theta, phi, rho")
    header("lengths", "errors", "n", "ordinary", "HC3", "used", "half / constant, used")
    for shape, (prompts, replies) in {
        "wide": ((100, 3000), (5, 300)),
        "narrow": ((1150, 1250), (10, 60)),
    }.items():
        for kind, errors in ERRORS.items():
            for n in (50, 200, 1000) if shape == "wide" else (200,):
                rng = np.random.default_rng([n, len(kind), len(shape)])
                held, halves = np.zeros((3, len(names))), []
                for _ in range(replications):
                    s = rng.integers(*prompts, n).astype(np.float64)
                    steps = rng.integers(*replies, n).astype(np.float64)
                    x = design(form, {"s": s, "n": steps}, n)
                    true = x @ constants
                    y = true + errors(true, rng)
                    used = solve(x, y, form.order, np.zeros(n, dtype=np.int64))
                    halves.append(used.half / np.abs(constants))
                    for row, half in enumerate((*plain(x, y), used.half)):
                        held[row] += np.abs(used.value - constants) <= half
                cells = (" ".join(f"{100 * share:.0f}" for share in row / replications) for row in held)
                widths = " ".join(f"{w:.2g}" for w in np.median(halves, axis=0))
                print(f"| {shape} | {kind} | {n} | {' | '.join(cells)} | {widths} |", flush=True)


def plain(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Half-widths by ordinary errors and by HC3, written out."""
    n, m = x.shape
    scale = np.linalg.norm(x, axis=0)
    u = x / scale
    inverse = np.linalg.inv(u.T @ u)
    residual = y - u @ (inverse @ (u.T @ y))
    t = student.two_sided(LEVEL, n - m)
    ordinary = np.sqrt(residual @ residual / (n - m) * np.diag(inverse))
    leverage = np.einsum("ij,jk,ik->i", u, inverse, u)
    meat = (u * (residual / (1.0 - leverage))[:, None] ** 2).T @ u
    return t * ordinary / scale, t * np.sqrt(np.diag(inverse @ meat @ inverse)) / scale


def made(rng: np.random.Generator, requests: int, sampling_s: float) -> Run:
    """One request after another with the study's times (2 % off) and joules, through a counter."""
    s, g = rng.integers(100, 2400, requests), rng.integers(5, 120, requests)
    records, knots_s, watts, t = [], [-2.0], [IDLE_W], 0.0
    for i, (prompt, reply) in enumerate(zip(s.tolist(), g.tolist(), strict=True)):
        alpha, beta, gamma = PREFILL_S
        first_s = (alpha * prompt + beta * prompt**2 + gamma) * (1 + 0.02 * rng.standard_normal())
        rest_s = 2.61e-2 * (reply - 1) * (1 + 0.02 * rng.standard_normal())
        end_s = t + first_s + rest_s
        records.append(
            Record(
                id=i, phase="measure", block=0, demand_s=t, due_s=t, sent_s=t, first_s=t + first_s,
                done_s=end_s, chunk_s=(), chunk_tokens=(), prompt_tokens=prompt, output_tokens=reply,
                tokens_from="server", finish_reason="length", http_status=200, server_times={},
                status="ok", error=None,
            )
        )  # fmt: skip
        joules = (
            JOULES["A"] * prompt + JOULES["B"],
            (JOULES["C"] + JOULES["D"] * prompt) * (reply - 1) + JOULES["E"],
        )
        # 3 % more or less in each phase: requests of equal lengths do not cost the same.
        off = 1 + 0.03 * rng.standard_normal(2)
        knots_s += [t, t + first_s]
        watts += [joules[0] / first_s * off[0], joules[1] / rest_s * off[1]]
        knots_s.append(end_s)
        watts.append(IDLE_W)
        t = end_s + rng.uniform(0.02, 0.2)
    edges_s = np.array([*knots_s, t + 2.0])
    summed_j = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * watts)])
    phase_s = rng.uniform(0, 0.1)
    read_s = np.arange(-2.0, t + 2.0, sampling_s) + rng.uniform(0, 2e-3, int(np.ceil((t + 4.0) / sampling_s)))
    published_s = np.floor((read_s - phase_s) / 0.1) * 0.1 + phase_s
    values = np.interp(published_s, edges_s, summed_j)
    readings = [Reading(float(a), "gpu0", energy_j=float(j)) for a, j in zip(read_s, values, strict=True)]
    domain = Domain("gpu0", "counter", None, "", 0.1)
    manifest = {
        "status": "complete",
        "closed_loop": True,
        "counts": {"planned": requests, "warmup": 0},
        "power": {"interval_s": sampling_s, "baseline_s": 2.0, "domains": [asdict(domain)], "reason": None},
        "window": {"start_s": 0.0, "end_s": records[-1].done_s},
    }
    return build_run(Path("made"), manifest, records, readings)


def coverage_of_slices(runs: int) -> None:
    """Prints the second part."""
    constants = np.array([JOULES[name] for name in TERMS])
    print(f"\n## slices: E of both phases, {runs} runs each, 3 % spread of requests' power")
    header("requests", "read every", "coverage A B C D E", "bias / constant", "half / constant")
    for requests in (100, 300):
        for sampling_s in (0.05, 0.1):
            rng = np.random.default_rng([requests, round(1000 * sampling_s)])
            found = [joint([sample(made(rng, requests, sampling_s))]).total for _ in range(runs)]
            values, halves = (np.array([getattr(f, name) for f in found]) for name in ("value", "half"))
            held = np.mean(np.abs(values - constants) <= halves, axis=0)
            bias, width = np.mean(values, axis=0) / constants - 1, np.median(halves, axis=0) / constants
            cells = (" ".join(f"{v:.2g}" for v in row) for row in (bias, width))
            shares = " ".join(f"{100 * share:.0f}" for share in held)
            print(f"| {requests} | {sampling_s:g} s | {shares} | {' | '.join(cells)} |", flush=True)


def alone(folder: Path, draw: int | None, requests: int = 300) -> Run:
    """The embedded server, one request at a time."""
    rng = np.random.default_rng([7, draw or 0])
    prompts = np.exp(rng.uniform(np.log(32), np.log(4000), requests)).astype(int)
    replies = rng.integers(4, 300, requests)
    rows = [
        f"2026-01-01 00:00:00.{i:06d},{p},{g}" for i, (p, g) in enumerate(zip(prompts, replies, strict=True))
    ]
    (folder / "lengths.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    hardware = "" if draw is None else f", hardware: {{draw: {draw}}}"
    scenario = folder / "alone.yaml"
    scenario.write_text(
        "name: alone\nseed: 7\nserver: {model: llama-3.1-8b, gpu: h100-sxm, dtype: bfloat16, "
        f"launcher: {{prefix_caching: false}}{hardware}}}\n"
        f"load: {{pattern: closed_loop, requests: {requests}, max_in_flight: 1, warmup_requests: 3}}\n"
        "prompts: {source: trace, path: lengths.csv}\npower: {interval_s: 0.1, baseline_s: 2}\n"
    )
    return load_run(run_scenario(scenario, folder))


def run_scenario(scenario: Path, folder: Path) -> Path:
    """The directory of a run."""
    command = [sys.executable, "-m", "loadgen", "run", str(scenario), "--output-dir", str(folder), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return Path(done.stdout.strip().splitlines()[-1])


def prefill_cost(steps: StepModel, s: int) -> tuple[float, float]:
    """Seconds and joules of one prompt."""
    found = steps.step(
        prefill_tokens=s, prefill_pairs=s * (s + 1) // 2, prefill_span_tokens=s, emitting_rows=1
    )
    return found.duration_s, found.duration_s * found.power_w


def decode_cost(steps: StepModel, s: int, n: int) -> tuple[float, float]:
    """Seconds and joules of n steps after a prompt of s tokens."""
    done = [steps.step(decode_rows=1, decode_context_tokens=s + k, emitting_rows=1) for k in range(n)]
    return sum(x.duration_s for x in done), sum(x.duration_s * x.power_w for x in done)


def engine(draws: int) -> None:
    """Prints the third part."""
    print("\n## engine: coefficients whose interval holds the law; error of predictions at other lengths")
    header("constants", "t_prefill", "t_decode", "E_prefill", "E_decode", "p50, max of |E - law| / law")
    for draw in (None, *range(1, draws + 1)):
        with tempfile.TemporaryDirectory() as scratch:
            run = alone(Path(scratch), draw)
        steps = Deployment(Launch(seed=7, hardware=Hardware(draw=draw))).step_model
        model = fit([run])
        s = run.ok["prompt_tokens"].to_numpy().astype(int)
        n = run.ok["output_tokens"].to_numpy().astype(int) - 1
        prefill = np.array([prefill_cost(steps, int(a)) for a in s])
        decode = np.array([decode_cost(steps, int(a), int(b)) for a, b in zip(s, n, strict=True)])
        cells = []
        for name, values in (
            ("t_prefill", prefill[:, 0]),
            ("t_decode", decode[:, 0]),
            ("E_prefill", prefill[:, 1]),
            ("E_decode", decode[:, 1]),
        ):
            x = design(FORMS[name], {"s": s.astype(np.float64), "n": n.astype(np.float64)}, len(s))
            law = np.linalg.lstsq(x, values, rcond=None)[0]
            kept = [
                (t.low is not None and t.high is not None and t.low <= v <= t.high)
                for t, v in zip(model[name].terms, law, strict=True)
            ]
            cells.append(f"{sum(kept)} of {len(kept)}")
        others = [(a, b) for a in (60, 150, 400, 900, 1500, 2400, 3500) for b in (10, 60, 150, 280)]
        true = np.array([prefill_cost(steps, a)[1] + decode_cost(steps, a, b - 1)[1] for a, b in others])
        told = model.energy_j(*np.array(others, dtype=np.float64).T)
        off = np.abs(told / true - 1)
        row = " | ".join(cells)
        name = "typical" if draw is None else f"draw {draw}"
        print(f"| {name} | {row} | {np.median(off):.4f}, {off.max():.3f} |", flush=True)


def predicted(model: Model, run: Run) -> Floats:
    """Joules of the run's successes by their lengths alone."""
    ok = run.ok.set_index("id")
    return model.energy_j(ok["prompt_tokens"].to_numpy(), ok["output_tokens"].to_numpy())


def batched() -> None:
    """Prints the fourth part."""
    print("\n## batched: joules of a request against step-Shapley values, Poisson 4 a second, 800 requests")
    header("what", "L1", "p95", "sum / truth")
    runs, truths = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (1, 2):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            runs.append(load_run(simulate(LEVELS[1], seed, folder)))
            truths.append(true_costs(runs[-1]))
        lonely = fit([alone(Path(scratch), None)])

    def say(what: str, run: Run, told: Floats, true: Floats) -> None:
        off = np.abs(told - true)
        p95 = np.percentile(off / true, 95)
        print(
            f"| {what} | {off.sum() / true.sum():.3f} | {p95:.3f} | {told.sum() / true.sum():.3f} |",
            flush=True,
        )

    model = fit([runs[0]])
    for what, made_of, k in (
        ("study's forms, the run they are fitted to", model, 0),
        ("study's forms, another run of that load", model, 1),
        ("study's forms of requests alone", lonely, 1),
    ):
        ok = runs[k].ok["id"]
        say(what, runs[k], predicted(made_of, runs[k]), truths[k]["total_j"].reindex(ok).to_numpy())
    nameless = replace(runs[1], manifest={**runs[1].manifest, "server": {}})
    for what, weights in (
        ("tariff of that load", model.weights),
        ("tariff of requests alone", lonely.weights),
    ):
        found = Attribution(nameless, weights=weights, calibrated=False).window().requests
        got = score(found, truths[1])
        print(
            f"| attribution of another run, {what} | {got.l1:.3f} | {got.p95:.3f} | phase {got.phase:.3f} |",
            flush=True,
        )


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--replications", type=int, default=500)
    parser.add_argument("--runs", type=int, default=200, help="of the slices' coverage")
    parser.add_argument("--draws", type=int, default=4)
    parts = ("intervals", "slices", "engine", "batched")
    parser.add_argument("--part", choices=parts, action="append")
    args = parser.parse_args()
    wanted = args.part or parts
    if "intervals" in wanted:
        coverage_of_intervals(args.replications)
    if "slices" in wanted:
        coverage_of_slices(args.runs)
    if "engine" in wanted:
        engine(args.draws)
    if "batched" in wanted:
        batched()


if __name__ == "__main__":
    main()
