"""Goodput: the requests that met every limit of the service level objective (SLO).

Over all records, those that failed or were never sent too: a failure never meets it, and dropping
requests does not raise it. A reply of one token has no gap to be slow in and meets any limit on
TPOT. Where a success lacks what a limit asks for (the server told no token count), it counts as
not met and the method says how many; where all lack it, there is no goodput.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import latency, stats
from analysis.run import Run
from analysis.stats import Blocks
from loadgen.types import Floats


def goodput(run: Run, blocks: Blocks) -> dict[str, Any] | None:
    """``slo`` (limits in seconds, by metric with ``_s``), ``ratio`` and ``rps``; None without an SLO.

    ``rps`` is the requests within the SLO over the window.
    """
    slo = run.manifest.get("slo") or {}
    limits_s = {key: float(limit) for key, limit in slo.items() if limit is not None}
    if not limits_s or not run.end_s:
        return None
    ok, n = run.ok, len(run.requests)
    values_s = latency.per_request(ok)
    one_token = ok["output_tokens"].to_numpy(dtype=np.float64) <= 1
    values_s["tpot"] = np.where(one_token, 0.0, values_s["tpot"])
    due_s = _due_s(ok)
    judged = np.ones(len(ok), dtype=bool)
    met = np.ones(len(ok), dtype=bool)
    swings_s = []
    for key, limit_s in limits_s.items():
        value_s = values_s.get(key.removesuffix("_s"), np.full(len(ok), np.nan))
        judged &= ~np.isnan(value_s)
        met &= value_s <= limit_s
        known = ~np.isnan(value_s)
        if known.any():
            centred_s = value_s[known] - value_s[known].mean()
            swings_s.append(blocks.sums(centred_s, blocks.index(due_s[known])))
    lost = len(ok) - int(np.count_nonzero(judged))
    if lost and lost == len(ok):
        why = f"no successful request has what the limits on {', '.join(limits_s)} ask for"
        return {"slo": limits_s, "ratio": stats.missing("1", why, n), "rps": stats.missing("1/s", why, n)}
    counted = f" ({lost} successes that cannot be judged count as not met)" if lost else ""
    per_block = blocks.counts(blocks.index(due_s[met]))
    records = blocks.counts(blocks.index(_due_s(run.requests)))
    what = f"requests within the SLO / records{counted}"
    rate = f"requests within the SLO / window{counted}"
    return {
        "slo": limits_s,
        "ratio": stats.share(per_block, records, blocks, what, swings_s),
        "rps": stats.ratio(per_block, np.diff(blocks.edges_s), blocks, "1/s", n, rate),
    }


def _due_s(frame: pd.DataFrame) -> Floats:
    return np.asarray(frame["due_s"].to_numpy(), dtype=np.float64)
