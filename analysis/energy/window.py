"""A run's window cut into joint time blocks, and the energies of it over them."""

from __future__ import annotations

import numpy as np

from analysis import stats
from analysis.energy.measured import Part, PartEnergy
from analysis.energy.parts import measure, update_of
from analysis.run import Run
from analysis.stats import Blocks


def blocks_of(run: Run) -> Blocks:
    """The joint time blocks of a run's window (see `analysis.stats.choose_blocks`).

    As long as the slowest power series needs, if that leaves enough of them; otherwise the
    energy alone has no intervals.
    """
    e2e_s = (run.ok["done_s"] - run.ok["sent_s"]).to_numpy(dtype=np.float64)
    due_s = run.requests["due_s"].dropna().to_numpy(dtype=np.float64)
    window = (0.0, run.end_s or 0.0, due_s, e2e_s[~np.isnan(e2e_s)], run.period_s)
    blocks = stats.choose_blocks(*window)
    updates_s = [update_of(series, run.period_s) for series in run.series.values()]
    slowest_s = max((u for u in updates_s if u is not None), default=0.0)
    if slowest_s <= blocks.length_s:
        return blocks
    longer = stats.choose_blocks(*window, update_s=slowest_s)
    return blocks if longer.waves is None else longer


def measure_window(run: Run, blocks: Blocks) -> dict[Part, PartEnergy]:
    """Of each part, over the blocks of `blocks_of`; empty when nothing was done."""
    return measure(run, blocks.edges_s) if run.end_s else {}
