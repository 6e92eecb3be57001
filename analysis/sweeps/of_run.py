"""A run of the whole path as the figures of a sweep's point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis import energy
from analysis.run import Run, load_run
from loadgen.sweep.figures import Outcome, figures_of
from loadgen.types import Floats


def of_run(path: Path) -> dict[str, Any]:
    """The figures of a run directory by name (`loadgen.sweep.figures`), energy as its sensors read it.

    Raises RunDirError.
    """
    run = load_run(path)
    gpu = energy.measure_window(run, energy.blocks_of(run)).get("gpu")
    served = np.asarray(run.requests["status"] == "ok")
    outcome = Outcome(
        _column(run, "demand_s"),
        _column(run, "due_s"),
        _column(run, "sent_s"),
        _column(run, "first_s"),
        np.where(served, _column(run, "done_s"), np.nan),
        _column(run, "prompt_tokens"),
        _column(run, "output_tokens"),
        None if gpu is None else gpu.total_j,
        float(run.end_s or 0.0),
    )
    slo = {
        key: None if limit is None else float(limit) for key, limit in (run.manifest.get("slo") or {}).items()
    }
    return figures_of(outcome, slo, closed=run.closed_loop)


def _column(run: Run, name: str) -> Floats:
    ordered = run.requests.sort_values("id")
    values: Floats = ordered[name].to_numpy(dtype=np.float64)
    return values
