"""What the server says of the run, beside what the client saw: tokens by counter, load over time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.run import Run
from loadgen.types import Floats

AGREEMENT = 0.01
"""Server and records may differ by this share; more is the tokens of somebody else."""
RESTARTED = (
    "the server's counter fell or vanished during the run: it was restarted, or several servers answer"
)
_STRETCH_TOKENS = 1024
"""TGI passes a longer reply through its queue several times, each counted as a prompt of its own."""


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """Tokens over the run: how far the ``server``'s counter moved, and the sum over the ``records``.

    ``records`` are all requests of the run that succeeded, warm-ups too. ``allowed``:
    how many more the server may have counted for requests that ended otherwise. When
    a side is None, ``reason`` says why.
    """

    kind: Literal["prompt", "output"]
    server: float | None
    records: float | None
    allowed: float = 0.0
    reason: str | None = None

    @property
    def excess(self) -> float | None:
        """Server minus records as a share of the records; None when either is not known, or is nothing."""
        if self.server is None or not self.records:
            return None
        return self.server / self.records - 1.0

    @property
    def agrees(self) -> bool | None:
        """Whether the server counted what the run can explain, within 1 %; None when it cannot be told."""
        if self.server is None or self.records is None:
            return None
        slack = AGREEMENT * self.records
        return bool(self.records - slack <= self.server <= self.records + self.allowed + slack)


def token_deltas(run: Run) -> tuple[TokenDelta, TokenDelta]:
    """Prompt and output tokens, by the server's counters and by the records.

    They are compared only where the samples enclose every request of the run, since
    servers count some tokens as they come and others as their request ends.
    """
    return _delta(run, "prompt"), _delta(run, "output")


def load_over_time(run: Run) -> tuple[Floats, Floats, Floats]:
    """``(t_s, running, waiting)`` in run time, each (n,); NaN where the server did not tell."""
    t_s, running, waiting = (
        run.metrics[name].to_numpy(dtype=np.float64) for name in ("t_s", "running", "waiting")
    )
    return t_s, running, waiting


def _delta(run: Run, kind: Literal["prompt", "output"]) -> TokenDelta:
    server, why_not = _moved(run, f"{kind}_tokens")
    records, allowed, why_neither = _recorded(run, kind)
    return TokenDelta(kind, server, records, allowed, why_not or why_neither)


def _moved(run: Run, column: str) -> tuple[float | None, str | None]:
    """How far a counter moved between the first and the last sample, or why that is not known."""
    if not len(run.metrics):
        reason = (run.manifest.get("metrics") or {}).get("reason")
        return None, str(reason or "the server's metrics were not collected")
    samples = run.metrics.sort_values("t_s", kind="stable")
    sent = pd.concat([frame[frame["sent_s"].notna()] for frame in (run.warmups, run.requests)])
    if len(sent) and not (
        samples["t_s"].iloc[0] <= sent["sent_s"].min() and sent["done_s"].max() <= samples["t_s"].iloc[-1]
    ):
        return None, "the samples of the server's metrics do not enclose the run's requests"
    values = samples[column].to_numpy(dtype=np.float64, copy=True)
    told = ~np.isnan(values)
    if not told.any():
        return None, "the server does not tell it"
    values[: int(np.argmax(told))] = 0.0  # pages without this counter: nothing had been counted (TGI, SGLang)
    if np.isnan(values).any() or np.any(np.diff(values) < 0):
        return None, RESTARTED
    return float(values[-1] - values[0]), None


def _recorded(run: Run, kind: Literal["prompt", "output"]) -> tuple[float | None, float, str | None]:
    """The successful records' tokens, what others may add, or why that is not known."""
    every = pd.concat([run.warmups, run.requests])
    ok = every[every["status"] == "ok"]
    tokens = ok[f"{kind}_tokens"].to_numpy(dtype=np.float64)
    if np.isnan(tokens).any() or (ok["tokens_from"] != "server").any():
        return None, 0.0, f"not every reply came with the server's count of {kind} tokens"
    if kind == "prompt" and _is_tgi(run) and (ok["output_tokens"] > _STRETCH_TOKENS).any():
        return None, 0.0, f"TGI counts the prompt of a reply of more than {_STRETCH_TOKENS} tokens repeatedly"
    other = int((every["sent_s"].notna() & ~every["status"].isin(("ok", "rejected", "dropped"))).sum())
    if run.manifest.get("metrics") is None:
        other += 1  # a sidecar's samples begin before the probe request, which has no record
    most = float(tokens.max()) if len(tokens) else 0.0
    return float(tokens.sum()), most * other, None


def _is_tgi(run: Run) -> bool:
    """By the page if this run looked at it, else (a sidecar did) by what the server said of itself."""
    family = (run.manifest.get("metrics") or {}).get("family")
    return (family or (run.manifest.get("server") or {}).get("kind")) == "tgi"


def disagreements(run: Run) -> list[str]:
    """A line for each kind of tokens that the run does not explain, and for a restarted server."""
    found: list[str] = []
    for delta in token_deltas(run):
        if delta.reason == RESTARTED:
            found.append(f"{delta.kind} tokens: {RESTARTED}")
        if delta.agrees is False and delta.server is not None and delta.records is not None:
            more = delta.server > delta.records
            why = (
                "somebody else used it, and the energy per request counts their work too"
                if more
                else "some requests were answered elsewhere"
            )
            found.append(
                f"the server counted {delta.server:.0f} {delta.kind} tokens and the run's records "
                f"{delta.records:.0f}: {why}"
            )
    return found
