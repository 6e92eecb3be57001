"""The steps of a run that can be trusted, as rows of work and how long they took.

From client records (`analysis.attribution.activity`). Left out are steps during which requests
were under way of which no token came, warm-up prompts of a server with a prefix cache, and those
whose rows got more or less than one token each; also two steps that a prompt may have been cut at,
where the second alone shows a token of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.attribution.activity import Activity, activity, cached_share
from analysis.attribution.chunks import by_durations, chunked
from analysis.attribution.weights import from_physics
from analysis.calibrate.rebuild import cached_tokens, scenario_of
from analysis.calibrate.subject import Subject
from analysis.calibrate.work import Work, work_of
from analysis.run import Run
from loadgen.errors import ConfigError
from loadgen.physics.breakdown import Mix
from loadgen.physics.transformer import StepModel

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

BLOCKS = 20
"""Stretches of time of a run whose steps go together."""
FEWEST = 20
"""Steps that a calibration needs."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Of one run: ``did`` all its steps (S,), ``work`` of them, and which may be used, (S,).

    ``kind``: (S,), the cell of prompt length, rows and context that a step is of; ``stretch``: (S,),
    its stretch of time. ``clear``: (S,), whether everything that the server did then was seen.
    """

    run: Run
    subject: Subject
    did: Activity
    work: Work
    usable: Bools
    clear: Bools
    kind: Ints
    stretch: Ints


def observe(run: Run, subject: Subject) -> Observed:
    """The steps of a run. Raises ConfigError in one line when none can be seen."""
    did = activity(run)
    if not did.stamped:
        raise ConfigError(
            f"{run.path.name}: its tokens have no stamps of their own, so no step can be seen: "
            "calibrate with streamed replies"
        )
    did, whole = _spread(run, subject, _less_cached(run, subject, did))
    mix = _mix(did, whole)
    base = subject.base
    efficiency = replace(base.efficiency, graph_max_rows=subject.graph_rows)
    work = work_of(mix, subject.model, base.gpu, subject.dtype, subject.shards, efficiency)
    clear = ~(_clouded(run, did) | _halved(did, _budget(run, subject)))
    usable = clear & _plain(did) & (did.duration_s > 0)
    if int(usable.sum()) < FEWEST:
        raise ConfigError(
            f"{run.path.name}: {int(usable.sum())} steps of the server can be told from its records, "
            f"at least {FEWEST} are needed"
        )
    count = len(did.duration_s)
    stretch = np.minimum(np.arange(count) * BLOCKS // max(count, 1), BLOCKS - 1).astype(np.int64)
    return Observed(run, subject, did, work, usable, clear, _kinds(mix), stretch)


def _less_cached(run: Run, subject: Subject, did: Activity) -> Activity:
    """The same without the tokens that the prefix cache is known to have had."""
    if not subject.embedded or cached_share(run) > 0:
        return did
    server = scenario_of(run).server
    if not server.launcher.prefix_caching:
        return did
    launch = server.launch(int(run.manifest.get("seed") or 0))
    saved = cached_tokens(run, launch, subject.base)
    if saved is None:
        return did
    of_request = saved.reindex(did.requests["id"]).fillna(0.0).to_numpy(dtype=np.float64)
    fills = did.prefill_tokens > 0
    less = np.where(fills, np.minimum(of_request[did.request], did.prefill_tokens - 1.0), 0.0)
    return replace(did, prefill_tokens=did.prefill_tokens - less, context_tokens=did.context_tokens + less)


def _spread(run: Run, subject: Subject, did: Activity) -> tuple[Activity, Ints]:
    """With prompts spread over the steps they took, and the rows that were there before, which emit."""
    own = np.arange(len(did.step), dtype=np.int64)
    budget = _budget(run, subject)
    if budget is not None:
        return chunked(did, budget), own
    base = subject.base
    efficiency = replace(base.efficiency, graph_max_rows=subject.graph_rows)
    steps = StepModel(subject.model, base.gpu, subject.dtype, shards=subject.shards, efficiency=efficiency)
    return by_durations(did, from_physics(steps, base.gpu.context_idle_w)), own


def _budget(run: Run, subject: Subject) -> float | None:
    """Tokens a forward as the embedded server says; None of others."""
    limits = (run.manifest.get("server") or {}).get("limits") or {}
    budget = limits.get("max_batch_prefill_tokens") if subject.embedded else None
    return None if budget is None else float(budget)


def _halved(did: Activity, budget: float | None) -> Bools:
    """Pairs of steps, (S,), that may share a prompt of which only the second shows a token.

    The first took prompts and had less room left than the one that waited, which then filled it.
    """
    found: Bools = np.zeros(len(did.end_s), dtype=np.bool_)
    ends = np.flatnonzero((did.prefill_tokens > 0) & (did.step > 0))
    if budget is None or not len(ends):
        return found
    taken = did.per_step(did.prefill_tokens)
    room = budget - did.per_step((did.prefill_tokens == 0).astype(np.float64)) - taken
    before = did.step[ends] - 1
    waited = did.requests["sent_s"].to_numpy(dtype=np.float64)[did.request[ends]] <= did.start_s[before]
    cut = waited & (taken[before] > 0) & (room[before] > 0) & (did.prefill_tokens[ends] > room[before])
    found[before[cut]] = found[did.step[ends[cut]]] = True
    return found


def _mix(did: Activity, whole: Ints) -> Mix:
    new, before = did.prefill_tokens, did.context_tokens
    fills = new > 0
    emits = np.zeros(len(did.step))
    emits[whole] = 1.0
    return Mix(
        prefill_tokens=did.per_step(new),
        prefill_pairs=did.per_step(np.where(fills, new * before + new * (new + 1.0) / 2.0, 0.0)),
        prefill_span_tokens=did.per_step(np.where(fills, new + before, 0.0)),
        decode_rows=did.per_step((~fills).astype(np.float64)),
        decode_context_tokens=did.per_step(np.where(fills, 0.0, before)),
        emitting_rows=did.per_step(emits),
    )


def _clouded(run: Run, did: Activity) -> Bools:
    """Steps, (S,), in whose time a request was under way of which no token came."""
    records = run.requests
    lost = records[records["sent_s"].notna() & (records["status"] != "ok")]
    begin_s = lost["sent_s"].to_numpy(dtype=np.float64)
    end_s = lost["done_s"].fillna(np.inf).to_numpy(dtype=np.float64)
    change = np.zeros(len(did.end_s) + 1)
    np.add.at(change, np.searchsorted(did.end_s, begin_s), 1.0)
    np.add.at(change, np.searchsorted(did.start_s, end_s), -1.0)
    found: Bools = np.cumsum(change)[:-1] > 0
    return found


def _plain(did: Activity) -> Bools:
    """Steps, (S,), whose rows got one token each, without warm-up prompts: what of those was cached?"""
    fills = did.prefill_tokens > 0
    odd = np.where(fills, did.decode_tokens > 0, np.abs(did.decode_tokens - 1.0) > 1e-9)
    warm = (did.requests["phase"] == "warmup").to_numpy()[did.request] & fills
    found: Bools = did.per_step((odd | warm).astype(np.float64)) == 0
    return found


def _kinds(mix: Mix) -> Ints:
    """Cells of a factor of 1.4 in prompt tokens, 1.2 in rows, 2 in mean context, numbered from 0."""
    counted = (mix.prefill_tokens, mix.decode_rows, mix.decode_context_tokens)
    prompt, rows, context = (np.asarray(counts, dtype=np.float64) for counts in counted)
    cells = [
        np.floor(2.0 * np.log2(1.0 + prompt)),
        np.floor(4.0 * np.log2(1.0 + rows)),
        np.floor(np.log2(1.0 + context / np.maximum(rows, 1.0))),
    ]
    found: Ints = np.unique(np.stack(cells, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return found
