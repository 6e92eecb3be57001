"""What each request did when, as far as its client could see: the server's steps, inferred.

All rows of a step get their token when it ends, so the arrival stamps of tokens,
over all requests, bunch at the ends of steps. The first token ends the step that
prefilled its prompt, each later one a step that decoded one row of a known context.
Where the client kept no stamps (no streaming, or chunk times not recorded) a
reply's tokens are spread evenly from the first to the last, over the steps that
others show, and over slices where nobody does.

From client records only; `analysis.attribution` turns it into shares of energy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.run import Run
from loadgen.types import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BUNCH = 0.25
"""Stamps nearer than this share of the usual gap between a reply's chunks are of one step."""
SHORTEST_BUNCH_S, LONGEST_BUNCH_S = 1e-5, 5e-3
SLICE_S = 0.05
"""How finely a reply without stamps is spread, where that needs at most `MOST_ROWS` rows."""
MOST_ROWS = 4_000_000


@dataclass(frozen=True, slots=True)
class Activity:
    """Steps and their rows, instants in run time.

    ``requests``: one row per record that was sent, index 0..N-1: ``id``, ``phase``,
    ``status``, ``sent_s``, ``seen`` (the client got a token of it). ``start_s``, ``end_s``: (S,), of the
    steps, in order and disjoint; between them the server had nothing to do. ``step``,
    ``request``: (R,), indices into both; ``prefill_tokens``, ``decode_tokens``: what the
    row computed, (R,); ``context_tokens``: cached before it, (R,). A step stands for
    several where stamps are missing; then a row may decode several tokens or part of one.
    Prompts stand in the step of their first token (`analysis.attribution.chunks` spreads them).
    ``stamped``: most tokens have stamps of their own, so that the durations are those of steps.
    """

    requests: pd.DataFrame
    start_s: Floats
    end_s: Floats
    step: Ints
    request: Ints
    prefill_tokens: Floats
    decode_tokens: Floats
    context_tokens: Floats
    stamped: bool

    @property
    def duration_s(self) -> Floats:
        """(S,)."""
        return self.end_s - self.start_s

    def per_step(self, of_row: Floats) -> Floats:
        """Sums over the rows of each step, (S,)."""
        found: Floats = np.bincount(self.step, of_row, minlength=len(self.start_s)).astype(np.float64)
        return found


def activity(run: Run) -> Activity:
    """What the requests of a run did, warm-ups included. Never raises for missing data.

    A request of which no token was seen has no row: what the server did for it before
    it failed cannot be told from outside.
    """
    records = pd.concat([frame for frame in (run.warmups, run.requests) if len(frame)] or [run.requests])
    records = records[records["sent_s"].notna()].sort_values("sent_s", kind="stable").reset_index(drop=True)
    prompt = _prompt_tokens(run, records)
    events = _events(records)
    requests = records[["id", "phase", "status", "sent_s"]].assign(
        seen=np.isin(np.arange(len(records)), events.request)
    )
    end_s, event_step, step_before = _bunches(events)
    rows, tokens, step = _spread(events, event_step, step_before)
    is_first = events.first[rows]
    request = events.request[rows]
    context = prompt[request] + _running(request, tokens)
    computed = np.maximum(prompt * (1.0 - cached_share(run)), 1.0)
    prefill = np.where(is_first, computed[request], 0.0)
    before = np.where(is_first, prompt[request] - computed[request], context)
    sent_s = records["sent_s"].to_numpy(dtype=np.float64)
    made = Activity(
        requests,
        end_s,
        end_s,
        step,
        request,
        prefill,
        tokens,
        before,
        events.stamped,
    )
    return replace(made, start_s=_starts(made, sent_s))


def cached_share(run: Run) -> float:
    """The share of the run's prompt tokens that the server found in its prefix cache, by its own counters.

    Whose they were it does not tell, so every prompt is taken to have had its part of them; 0 when
    it does not count them.
    """
    moved = []
    for name in ("cached_tokens", "prompt_tokens"):
        told = run.metrics.sort_values("t_s", kind="stable")[name].dropna().to_numpy(dtype=np.float64)
        if len(told) < 2 or np.any(np.diff(told) < 0):
            return 0.0
        moved.append(float(told[-1] - told[0]))
    return min(moved[0] / moved[1], 1.0) if moved[1] > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Events:
    """Arrivals of tokens, (E,), by request and then time; ``before_s`` is the arrival before it.

    ``even``: not seen, but spread over slices.
    """

    request: Ints
    at_s: Floats
    before_s: Floats
    tokens: Floats
    first: Bools
    even: Bools
    gap_s: float
    stamped: bool


def _prompt_tokens(run: Run, records: pd.DataFrame) -> Floats:
    """As counted; else as planned (a failed request has no count); else the run's mean, or 1."""
    counted = records["prompt_tokens"].to_numpy(dtype=np.float64, copy=True)
    planned = run.timetable.drop_duplicates("id").set_index("id")["prompt_tokens"]
    guess = planned.where(planned > 0).reindex(records["id"]).to_numpy(dtype=np.float64)
    counted = np.where(np.isnan(counted), guess, counted)
    mean = float(np.nanmean(counted)) if np.any(~np.isnan(counted)) else 1.0
    return np.maximum(np.where(np.isnan(counted), mean, counted), 1.0)


def _events(records: pd.DataFrame) -> _Events:
    """The first token of each request, then its chunks; or even ones where there are no stamps."""
    first_s, done_s = (records[name].to_numpy(dtype=np.float64) for name in ("first_s", "done_s"))
    output = np.nan_to_num(records["output_tokens"].to_numpy(dtype=np.float64), nan=0.0)
    ok = (records["status"] == "ok").to_numpy()
    # Not streamed: the reply came whole, and its last instant is the only one.
    whole = ok & np.isnan(first_s) & ~np.isnan(done_s)
    sent_s = records["sent_s"].to_numpy(dtype=np.float64)
    counts = np.fromiter(map(len, records["chunk_s"]), np.int64, len(records))
    bare = np.flatnonzero((~np.isnan(first_s) & (counts == 0)) | whole)
    request = np.repeat(np.arange(len(records)), counts)
    at_s, tokens = (
        np.fromiter(chain.from_iterable(records[name]), np.float64, len(request))
        for name in ("chunk_s", "chunk_tokens")
    )
    first = np.ones(len(request), dtype=bool)
    first[1:] = request[1:] != request[:-1]
    gaps = np.diff(at_s)[~first[1:]] / np.maximum(tokens[1:][~first[1:]], 1.0)
    usual_s = float(np.median(gaps)) if len(gaps) else SLICE_S
    stamped = bool(tokens.sum() >= output[bare].sum())
    spread = np.zeros(len(request), dtype=bool)
    if len(bare):
        begin_s = np.where(whole, sent_s, first_s)[bare]
        even = _even(begin_s, np.maximum(done_s[bare], begin_s), output[bare], usual_s)
        request = np.concatenate([request, bare[even[0]]])
        at_s, tokens = np.concatenate([at_s, even[1]]), np.concatenate([tokens, even[2]])
        first = np.concatenate([first, even[3]])
        spread = np.concatenate([spread, np.ones(len(even[3]), dtype=bool)])
        order = np.lexsort((at_s, request))
        request, at_s, tokens = request[order], at_s[order], tokens[order]
        first, spread = first[order], spread[order]
    before_s = np.where(first, sent_s[request] if len(request) else 0.0, np.roll(at_s, 1))
    return _Events(request, at_s, before_s, tokens, first, spread, usual_s, stamped)


def _even(
    begin_s: Floats, end_s: Floats, output: Floats, usual_s: float
) -> tuple[Ints, Floats, Floats, Bools]:
    """Request, end of slice, tokens, whether the first: replies spread evenly over slices of one grid.

    Those who run together so share slices, as they shared steps.
    """
    slice_s = max(usual_s, SLICE_S, float((end_s - begin_s).sum()) / MOST_ROWS)
    low, high = np.floor(begin_s / slice_s), np.floor(end_s / slice_s)
    counts = (high - low).astype(np.int64) + 1
    request = np.repeat(np.arange(len(counts)), counts)
    k = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    from_s = (low[request] + k) * slice_s
    lasting_s = (end_s - begin_s)[request]
    inside_s = np.minimum(from_s + slice_s, end_s[request]) - np.maximum(from_s, begin_s[request])
    part = np.where(lasting_s > 0, inside_s / np.where(lasting_s > 0, lasting_s, 1.0), k == 0)
    tokens = np.maximum(output - 1.0, 0.0)[request] * part
    at_s = np.asarray(from_s + slice_s, dtype=np.float64)
    return request.astype(np.int64), at_s, tokens + (k == 0), k == 0


def _bunches(events: _Events) -> tuple[Floats, Ints, Ints]:
    """Ends of the steps (S,), the step of each event (E,), and that of its request's event before it."""
    if not len(events.at_s):
        return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    width_s = min(max(BUNCH * events.gap_s, SHORTEST_BUNCH_S), LONGEST_BUNCH_S)
    order = np.argsort(events.at_s, kind="stable")
    sorted_s = events.at_s[order]
    number = np.concatenate([[0], np.cumsum(np.diff(sorted_s) > width_s)])
    end_s = np.bincount(number, sorted_s) / np.bincount(number)
    step = np.empty(len(order), dtype=np.int64)
    step[order] = number
    before = np.where(events.first, -1, np.roll(step, 1))
    return end_s, step, before


def _spread(events: _Events, step: Ints, before: Ints) -> tuple[Ints, Floats, Ints]:
    """Rows: the event of each, the tokens it decoded, its step.

    A chunk of k tokens came from the last k steps at whose ends others got theirs. The
    first token of a chunk that ends a prefill was not decoded.
    """
    tokens = np.where(events.first, np.maximum(events.tokens - 1.0, 0.0), events.tokens)
    over = np.clip(np.minimum(np.rint(tokens).astype(np.int64), step - before), 1, None)
    over = np.where(events.first | events.even, 1, over)
    rows = np.repeat(np.arange(len(step)), over)
    back = np.repeat(np.cumsum(over), over) - 1 - np.arange(len(rows))
    return rows, tokens[rows] / over[rows], step[rows] - back


def _running(request: Ints, tokens: Floats) -> Floats:
    """Tokens a row's request had decoded before it, (R,); rows of a request are together and in order."""
    if not len(request):
        return np.empty(0)
    total = np.cumsum(tokens) - tokens
    begins = np.flatnonzero(np.concatenate([[True], request[1:] != request[:-1]]))
    base = np.repeat(total[begins], np.diff(np.append(begins, len(request))))
    running: Floats = total - base
    return running


def _starts(made: Activity, sent_s: Floats) -> Floats:
    """Starts of the steps, (S,): the end of the one before if a row was there by then, else its coming."""
    ready_s = np.full(len(made.end_s), np.inf)
    begins = made.prefill_tokens > 0
    np.minimum.at(ready_s, made.step[begins], sent_s[made.request[begins]])
    ready_s[made.step[~begins]] = -np.inf
    before_s = np.concatenate([[-np.inf], made.end_s[:-1]])
    start_s: Floats = np.minimum(np.maximum(before_s, ready_s), made.end_s)
    return np.where(np.isfinite(start_s), start_s, made.end_s)
