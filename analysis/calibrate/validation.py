"""How far the emulator is from a run at the same load: request by request, and in the figures people quote.

Residuals are emulated over measured less 1. A request's own are taken between the same request's two
latencies; those of a median or p99 between the two samples' statistics. The measured side has the intervals
of `analysis.stats`; the emulator repeats to the last bit and has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis import energy, latency, stats
from analysis.calibrate.again import Again, serve_again
from analysis.run import Run
from loadgen.types import Estimate, Floats

LATENCIES = ("ttft", "tpot", "e2e")
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Residual:
    """One figure, measured and emulated, in ``unit``; ``error``: emulated over measured less 1."""

    name: str
    unit: str
    measured: Estimate
    emulated: float | None

    @property
    def error(self) -> float | None:
        if self.emulated is None or not self.measured.value:
            return None
        return self.emulated / self.measured.value - 1.0

    @property
    def inside(self) -> bool | None:
        """Whether the emulated figure is within the measured one's interval; None without one."""
        low, high = self.measured.low, self.measured.high
        return None if self.emulated is None or low is None or high is None else low <= self.emulated <= high


@dataclass(frozen=True, slots=True)
class PerRequest:
    """Latencies of the same requests: the median of their residuals and of the residuals' sizes."""

    name: str
    bias: Estimate
    size: Estimate


@dataclass(frozen=True, slots=True)
class Validation:
    """A run against the emulator. ``label`` of the run's side; the other is always emulated."""

    run: str
    gpu: str
    model: str
    dtype: str
    label: str
    requests: int
    left_out: int
    residuals: tuple[Residual, ...]
    per_request: tuple[PerRequest, ...]
    no_energy: str | None
    notes: tuple[str, ...]


def validate(
    run: Run,
    *,
    gpu: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    settings: Sequence[str] = (),
) -> Validation:
    """Serves the run's load on the emulator and compares. Raises as `serve_again`."""
    again = serve_again(run, gpu=gpu, model=model, dtype=dtype, settings=settings)
    served = again.served
    blocks = energy.blocks_of(run)
    rows = run.ok.set_index("id").loc[again.ids]
    at_s = rows["due_s"].to_numpy(dtype=np.float64)
    measured = latency.per_request(rows)
    emulated = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    residuals: list[Residual] = []
    pairs: list[PerRequest] = []
    for name in LATENCIES:
        ours, theirs = emulated[name], measured[name]
        known = ~(np.isnan(ours) | np.isnan(theirs)) & (theirs > 0)
        if not known.any():
            continue
        index = blocks.index(at_s[known])
        qs = list(QUANTILES.values())
        estimates = stats.quantiles(theirs[known], index, qs, blocks, "s")
        values = np.quantile(ours[known], qs).tolist()
        residuals += [
            Residual(f"{name} {q}", "s", estimate, value)
            for q, estimate, value in zip(QUANTILES, estimates, values, strict=True)
        ]
        relative = ours[known] / theirs[known] - 1.0
        bias, size = (stats.quantiles(x, index, [0.5], blocks, "1")[0] for x in (relative, np.abs(relative)))
        pairs.append(PerRequest(name, bias, size))
    residuals += _throughput(run, again)
    found, no_energy = _energy(run, again)
    residuals += found
    return Validation(
        run.path.name,
        again.deployment.launch.gpu,
        again.deployment.launch.model,
        again.deployment.launch.dtype,
        "simulated" if (run.manifest.get("server") or {}).get("kind") == "embedded" else "measured",
        len(rows),
        again.left_out,
        tuple(residuals),
        tuple(pairs),
        no_energy,
        tuple(_notes(run, again)),
    )


def _throughput(run: Run, again: Again) -> list[Residual]:
    """Requests and output tokens a second, from the first due time to the last reply."""
    served, end_s = again.served, run.end_s or 0.0
    n = len(again.ids)
    tokens = float(served.jobs.lengths.reply_tokens[served.ok].sum())
    counted = float(run.ok.set_index("id").loc[again.ids]["output_tokens"].sum())
    last_s = float(np.nanmax(served.done_s)) if served.ok.any() else np.nan
    how = "over the window; no interval: one figure of the whole run"
    rows = []
    for name, unit, top, ours in (
        ("requests a second", "1/s", float(n), float(served.ok.sum())),
        ("tokens a second", "1/s", counted, tokens),
    ):
        if end_s > 0 and last_s > 0:
            rows.append(Residual(name, unit, stats.exact(top / end_s, unit, n, how), ours / last_s))
    return rows


def _energy(run: Run, again: Again) -> tuple[list[Residual], str | None]:
    """GPU joules a success and mean power, idle included, over each side's own window."""
    if again.left_out:
        return [], f"{again.left_out} requests did not succeed, whose energy is in the run's"
    end_s = run.end_s or 0.0
    blocks = energy.blocks_of(run)
    part = energy.measure_window(run, blocks).get("gpu")
    if part is None or part.reason is not None or part.total_j is None:
        return [], (part.reason if part is not None else None) or "no power was read"
    served, n = again.served, len(again.ids)
    joules = _estimate(part.block_j, part.total_j, run, blocks, n)
    done = int(served.ok.sum())
    watts = stats.exact(part.total_j / end_s, "W", n, "over the window; no interval: one figure of the run")
    return [
        Residual("GPU J per request", "J", joules, served.energy_j / done if done else None),
        Residual("GPU mean power", "W", watts, served.energy_j / served.end_s),
    ], None


def _estimate(block_j: Floats | None, total_j: float, run: Run, blocks: stats.Blocks, n: int) -> Estimate:
    done = run.ok["done_s"].to_numpy(dtype=np.float64)
    if block_j is None:
        return stats.exact(total_j / n, "J", n, "ratio of sums; no interval: blocks shorter than an update")
    return stats.ratio(block_j, blocks.counts(blocks.index(done)), blocks, "J", n)


def _notes(run: Run, again: Again) -> list[str]:
    notes = []
    lost = int((~again.served.ok).sum())
    if lost:
        notes.append(f"{lost} of {len(again.ids)} requests are turned away by the emulator's limits")
    if again.left_out:
        notes.append(f"{again.left_out} requests of the run did not succeed and are in neither side")
    if (run.manifest.get("server") or {}).get("kind") != "embedded":
        notes.append(
            "what the real server's prefix cache saved is not known: the emulator computes all prompts"
        )
    return notes


def as_object(found: Validation) -> dict[str, Any]:
    """As JSON."""
    told = {
        name: getattr(found, name)
        for name in ("run", "gpu", "model", "dtype", "label", "requests", "left_out", "no_energy", "notes")
    }
    return told | {
        "residuals": [
            {
                "name": r.name,
                "unit": r.unit,
                "measured": asdict(r.measured),
                "emulated": r.emulated,
                "error": r.error,
                "inside": r.inside,
            }
            for r in found.residuals
        ],
        "per_request": [
            {"name": p.name, "bias": asdict(p.bias), "size": asdict(p.size)} for p in found.per_request
        ],
    }
