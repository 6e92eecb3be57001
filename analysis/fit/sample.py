"""What runs say of single requests: seconds and joules of their prefill and decode, and how alone they were.

Of a streamed request prefill is ttft, from *sent*: the way to the server and back, and any queue,
are in it; decode is e2e - ttft, ``n`` = reply tokens - 1 steps. Of the in-process protocol
(phases ``prefill``: one token only, and ``full``) prefill is the former's e2e, and decode the latter's
less the mean of the former of the same block and prompt length.

Joules are attributed (`analysis.attribution`): how a slice of power is split is then what the
tariff says. The constants of requests that were alone do not rest on that split (`analysis.fit.slices`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.attribution import Attribution, AttributionError, Method
from analysis.attribution.activity import Activity, activity
from analysis.run import Run
from loadgen.types import Floats

ALONE = 1.02
"""Mean number in flight over a request's stay up to which it was alone."""
_METHODS: tuple[Method, ...] = ("work", "regression")
_SIZES = ("s", "n", "seconds", "joules", "active_j", "in_flight", "at_s")


@dataclass(frozen=True, slots=True)
class Sample:
    """Phases of one run's successful requests, in order of time.

    ``prefill``, ``decode``: columns ``s`` prompt tokens, ``n`` decode steps, ``seconds``, ``joules``
    (idle included) and ``active_j`` (above idle), NaN where unknown, ``in_flight`` (mean over
    the request's stay), ``at_s``. ``phases``: a row a stretch: ``begin_s``, ``end_s``, ``s``, ``n``,
    ``in_flight``, and how much of a prefill (``fills``) and of a decode (``decodes``) it is.
    ``others``: ``begin_s``, ``end_s`` of all else that was sent, or not alone. ``did``: the steps.
    ``attribution``: of the run, None without energy. ``reason``: why there are no joules.
    ``notes``: where they are from, what was left out.
    """

    run: Run
    prefill: pd.DataFrame
    decode: pd.DataFrame
    phases: pd.DataFrame
    others: pd.DataFrame
    did: Activity
    attribution: Attribution | None
    reason: str | None
    label: str | None
    notes: tuple[str, ...]


def in_flight(run: Run) -> pd.Series[float]:
    """Mean number of requests in flight over each one's stay, itself included, by id.

    Of all that were sent, warm-ups and failed ones too.
    """
    frames = [frame for frame in (run.warmups, run.requests) if len(frame)]
    if not frames:
        return pd.Series(dtype=np.float64)
    sent = pd.concat(frames)
    sent = sent[sent["sent_s"].notna() & sent["done_s"].notna()]
    begin_s, end_s = (sent[name].to_numpy(dtype=np.float64) for name in ("sent_s", "done_s"))
    begins, ends = np.sort(begin_s), np.sort(end_s)
    sums = [np.concatenate([[0.0], np.cumsum(values)]) for values in (begins, ends)]

    def stayed_s(t_s: Floats) -> Floats:
        """Seconds of all stays up to t: sum of max(0, t - begin) less that of the ends."""
        i, j = (np.searchsorted(values, t_s, side="right") for values in (begins, ends))
        found: Floats = (t_s * i - sums[0][i]) - (t_s * j - sums[1][j])
        return found

    length_s = end_s - begin_s
    mean = (stayed_s(end_s) - stayed_s(begin_s)) / np.where(length_s > 0, length_s, 1.0)
    return pd.Series(np.where(length_s > 0, mean, 1.0), index=sent["id"].to_numpy())


def sample(run: Run) -> Sample:
    """The phases of a run's successful requests. Never raises for what is missing."""
    ok = run.ok.sort_values("sent_s", kind="stable")
    together = in_flight(run)
    ok = ok.assign(
        in_flight=ok["id"].map(together[~together.index.duplicated()]),
        e2e=ok["done_s"] - ok["sent_s"],
        ttft=ok["first_s"] - ok["sent_s"],
    )
    protocol = {"prefill", "full"} <= set(ok["phase"])
    known = ok["prompt_tokens"].notna() & ok["output_tokens"].notna() & ok["e2e"].notna()
    notes = []
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(ok)} successes without token counts were left out")
    ok = ok[known]
    if not protocol:
        several = np.array([len(c) > 0 and c[0] > 1 for c in ok["chunk_tokens"]], dtype=bool)
        if several.any():
            notes.append(
                f"{int(several.sum())} of {len(ok)} were left out: their first read brought several tokens, "
                "so prefill has no end of its own"
            )
        unseen = ok["first_s"].isna().to_numpy()
        if unseen.any():
            notes.append(f"{int(unseen.sum())} of {len(ok)} were left out: not streamed, no first token seen")
        ok = ok[~several & ~unseen]
    attribution, reason = _attribution(run)
    if protocol:
        ok = ok[ok["phase"].isin(("prefill", "full"))]
    ok = ok.reset_index(drop=True)
    shares = _shares(ok["id"], attribution)
    prefill, decode = (_by_protocol if protocol else _streamed)(ok, shares)
    if attribution is not None:
        notes.append(_split_by(attribution))
    label = None if attribution is None else attribution.label
    did = activity(run) if attribution is None else attribution.did
    return Sample(
        run,
        prefill,
        decode,
        _phases(ok, protocol),
        _others(run, ok),
        did,
        attribution,
        reason,
        label,
        tuple(notes),
    )


def _attribution(run: Run) -> tuple[Attribution | None, str | None]:
    """By the tariffs of the run's model and board; by its own energies where those are not known."""
    reason = None
    for method in _METHODS:
        try:
            made = Attribution(run, method)
            made.window()
            return made, None
        except AttributionError as exc:
            reason = str(exc)
    return None, reason


def _shares(ids: pd.Series[int], attribution: Attribution | None) -> pd.DataFrame:
    """Attributed ``idle_j``, ``prefill_j``, ``decode_j``, ``total_j`` by id, NaN where unknown."""
    if attribution is None:
        return pd.DataFrame(
            np.nan, index=range(len(ids)), columns=["idle_j", "prefill_j", "decode_j", "total_j"]
        )
    found = attribution.window().requests.drop(columns="status")
    return found.reindex(ids.to_numpy()).reset_index(drop=True)


def _split_by(attribution: Attribution) -> str:
    weights = None if attribution.method == "regression" else attribution.weights
    by = "this run's energies alone" if weights is None else weights.source
    return f"joules of a request: attributed ({attribution.method}), within a slice split by {by}"


def _streamed(ok: pd.DataFrame, share: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = np.maximum(ok["output_tokens"].to_numpy(dtype=np.float64) - 1.0, 0.0)
    sent_s, ttft, e2e, flight = (
        ok[name].to_numpy(dtype=np.float64) for name in ("sent_s", "ttft", "e2e", "in_flight")
    )
    # With one in flight the idle part is P_idle times the time of each phase.
    part = ttft / np.where(e2e > 0, e2e, 1.0)
    idle, own, rest = (share[name].to_numpy(dtype=np.float64) for name in ("idle_j", "prefill_j", "decode_j"))
    prompt = ok["prompt_tokens"].to_numpy(dtype=np.float64)
    frames = [
        pd.DataFrame(
            dict(zip(_SIZES, (prompt, n, seconds, above + of * idle, above, flight, sent_s), strict=True))
        )
        for seconds, above, of in ((ttft, own, part), (e2e - ttft, rest, 1.0 - part))
    ]
    return frames[0], frames[1][frames[1]["n"] > 0].reset_index(drop=True)


def _by_protocol(ok: pd.DataFrame, share: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    ok = ok.assign(s=ok["prompt_tokens"], n=ok["output_tokens"] - 1.0, seconds=ok["e2e"], at_s=ok["sent_s"])
    ok = ok.assign(joules=share["total_j"], active_j=share["total_j"] - share["idle_j"])
    prefill, full = ok[ok["phase"] == "prefill"], ok[ok["phase"] == "full"]
    key = ["block", "s"]
    measured = ["seconds", "joules", "active_j"]
    mean = prefill.groupby(key, as_index=False)[measured].mean()
    paired = full.merge(mean, on=key, suffixes=("", "_prefill")).sort_values("at_s", kind="stable")
    for name in measured:
        paired[name] = paired[name] - paired[f"{name}_prefill"]
    decode = paired[paired["n"] > 0]
    return (
        prefill[list(_SIZES)].reset_index(drop=True),
        decode[list(_SIZES)].reset_index(drop=True),
    )


def _phases(ok: pd.DataFrame, protocol: bool) -> pd.DataFrame:
    """Stretches of prefill and decode; of the protocol without a first token's stamp both in one."""
    sizes = {"s": ok["prompt_tokens"], "n": ok["output_tokens"] - 1.0, "in_flight": ok["in_flight"]}
    whole = ok["first_s"].isna() | (protocol & (ok["phase"] == "prefill"))
    split_s = ok["first_s"].where(~whole, ok["done_s"])
    decodes = (ok["output_tokens"] > 1).astype(np.float64)
    filling = pd.DataFrame(
        {**sizes, "begin_s": ok["sent_s"], "end_s": split_s, "fills": 1.0, "decodes": decodes * whole}
    )
    decoding = pd.DataFrame(
        {**sizes, "begin_s": split_s, "end_s": ok["done_s"], "fills": 0.0, "decodes": decodes}
    )
    return pd.concat([filling, decoding[~whole]], ignore_index=True)


def _others(run: Run, ok: pd.DataFrame) -> pd.DataFrame:
    """Stays of what is not in the phases or was not alone."""
    sent = pd.concat([frame for frame in (run.warmups, run.requests) if len(frame)] or [run.requests])
    alone = ok.loc[ok["in_flight"] <= ALONE, "id"]
    rest = sent[sent["sent_s"].notna() & sent["done_s"].notna() & ~sent["id"].isin(alone)]
    return pd.DataFrame({"begin_s": rest["sent_s"], "end_s": rest["done_s"]})
