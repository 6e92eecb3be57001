"""Was work skipped that the figures are taken to contain: prompts found in a cache, prompts sent twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis import floor
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.served import drawn, embedded_section, gpu_of, model_of
from loadgen.physics.formats import DTYPES

CACHED_SHARE = 0.05
"""A chat template's head, which all prompts share, is 2 % of the thank-you prompts."""
TOO_SOON_SHARE = 0.01
REPEATED_SHARE = 0.01

CACHE = Check(
    "prefix-cache",
    "the prompts were computed, not found in a prefix cache",
    "1",
    "docs/lint.md, Is a published number possible?",
)
PREFILL = Check(
    "prefill-floor",
    "no first token came before its prompt's FLOP could be done at peak rate",
    "1",
    "docs/lint.md, Is a published number possible?",
)
REPEATED = Check(
    "prompts-repeated", "no prompt was sent twice", "1", "docs/format.md, plan.jsonl, prompt_hash"
)
CHECKS = (CACHE, PREFILL, REPEATED)


def rules(run: Run) -> Iterator[Rule]:
    """In the order of CHECKS."""
    caching = _caching(run)
    yield _cached(run, caching)
    yield _prefill(run)
    yield _repeated(run, caching)


def _caching(run: Run) -> bool | None:
    """Whether the server kept prompts; None where nobody says."""
    server = run.manifest.get("server") or {}
    if server.get("kind") != "embedded":
        return None
    return bool(embedded_section(run, "launcher").get("prefix_caching"))


def _rise(run: Run, column: str) -> float | None:
    """How far a counter of the server moved over its samples; None where it fell or is not told."""
    if column not in run.metrics:
        return None
    value = run.metrics.sort_values("t_s", kind="stable")[column].dropna().to_numpy(dtype=np.float64)
    return float(value[-1] - value[0]) if len(value) > 1 and not np.any(np.diff(value) < 0) else None


def _cached(run: Run, caching: bool | None) -> Rule:
    cached, prompt = _rise(run, "cached_tokens"), _rise(run, "prompt_tokens")
    if cached is not None and prompt:
        share = cached / prompt
        told = (
            f"by the server's counters {100 * share:.3g} % of {prompt:,.0f} prompt tokens came from its cache"
        )
        if share > CACHED_SHARE:
            return CACHE.warns(
                f"{told}: their prefill cost nothing, and energy per request is that of repeated prompts",
                share,
                CACHED_SHARE,
            )
        return CACHE.holds(told, share, CACHED_SHARE)
    if caching is False:
        return CACHE.holds("the server was started without prefix caching", 0, CACHED_SHARE)
    known = "the server keeps prompts" if caching else "whether the server keeps prompts is not known"
    return CACHE.not_judged(f"{known}, and how many tokens it found again it did not tell")


def _prefill(run: Run) -> Rule:
    """A first token that came before F / peak shows that part of F was not computed."""
    gpu, model = gpu_of(run), model_of(run)
    if gpu is None or model is None or drawn(run):
        missing = "the board" if gpu is None else "the model"
        return PREFILL.not_judged(
            "the run drew its board's constants" if gpu and model else f"{missing} is not known"
        )
    ok = run.ok
    prompt, wait_s = ok["prompt_tokens"], ok["first_s"] - ok["sent_s"]
    told = (prompt.notna() & wait_s.notna()).to_numpy()
    if not told.any():
        return PREFILL.not_judged("no reply has both a prompt length and a first token")
    server = run.manifest.get("server") or {}
    dtype = DTYPES.get(str(server.get("dtype")))
    boards = max(1, len(run.manifest.get("gpus") or ()), int(server.get("shards") or 1))
    peak = boards * floor.peak_flop_per_s(gpu, dtype)
    least_s = floor.prefill_flop(model, prompt.to_numpy(dtype=np.float64)[told]) / peak
    soon = int(np.count_nonzero(wait_s.to_numpy(dtype=np.float64)[told] < least_s))
    share, n = soon / int(told.sum()), int(told.sum())
    if share > TOO_SOON_SHARE:
        return PREFILL.warns(
            f"{soon} of {n} first tokens came sooner than {boards} x {gpu.name} can compute the prompt "
            "at peak rate: a prefix cache skipped part of it (or the token counts are wrong)",
            share,
            TOO_SOON_SHARE,
        )
    return PREFILL.holds(
        f"{soon} of {n} first tokens came sooner than the prompt's FLOP at peak rate "
        f"({1e3 * float(np.median(least_s)):.3g} ms on median)",
        share,
        TOO_SOON_SHARE,
    )


def _repeated(run: Run, caching: bool | None) -> Rule:
    """By the texts' hashes; in a plan of an older version by the source's own ids."""
    plan = run.timetable
    measured = plan["phase"] != "warmup"
    told = [name for name in ("prompt_hash", "source_id") if plan.loc[measured, name].notna().all()]
    if not measured.any() or not told:
        return REPEATED.not_judged("plan.jsonl does not say which prompt each request sends (prompt_hash)")
    ids = plan[told[0]]
    named, before = ids[measured], ids[~measured].dropna()
    again = int((named.duplicated() | named.isin(before)).sum())
    share = again / len(named)
    if share <= REPEATED_SHARE:
        return REPEATED.holds(f"{again} of {len(named)} prompts had been sent before", share, REPEATED_SHARE)
    if caching is False:
        return REPEATED.holds(
            f"{again} of {len(named)} prompts had been sent before, to a server without prefix caching",
            share,
            REPEATED_SHARE,
        )
    return REPEATED.warns(
        f"{again} of {len(named)} prompts had been sent before: a prefix cache answers them without their "
        "prefill, so energy per request is not that of fresh prompts",
        share,
        REPEATED_SHARE,
    )
