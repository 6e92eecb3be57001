"""Did the client send what was planned, when it was planned, and did its own limits show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from analysis import floor
from analysis.latency import lateness_s
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.server_metrics import load_over_time
from loadgen.types import Floats

LATENESS_FLOOR_S = 5e-3
LATENESS_SHARE = 0.01
FELL_BEHIND = 0.01
"""Of the offered rate, that may be missing in the rate of sending."""
CAPPED_SHARE = 0.01
COMMON_SHARE = 0.01
_SAME_AGE = 0.01
_YOUNGEST_S = 0.5
_FEWEST_ALIKE = 3
HELD_BACK = 0.8
"""Of the records' requests in flight, the share that the server must know of."""
_BUSY = 10
_FEWEST_LOOKS = 5
_FEWEST_SENT = 20
_FEWEST_GAPS = 100
_HEAVY_CV = 1.5
_CV_SLACK = 0.05

LATENESS = Check(
    "lateness",
    "requests were sent when they were due",
    "s",
    "docs/method.md, When a run says that it is invalid",
)
GENERATOR = Check(
    "generator-saturated",
    "sending kept up with the plan",
    "1",
    "docs/method.md, Time",
)
GAPS = Check(
    "arrival-gaps",
    "requests were spaced by the law that is named",
    "1",
    "docs/lint.md, What goes wrong, script",
)
CAP = Check("in-flight-cap", "max_in_flight held no request back", "1", "docs/method.md, Time")
POOL = Check(
    "connection-pool", "what was in flight was at the server", "1", "docs/lint.md, What goes wrong, script"
)
TIMEOUTS = Check(
    "common-timeout",
    "no time limit cut the tail of the latencies",
    "1",
    "docs/lint.md, What goes wrong, script",
)
CHECKS = (LATENESS, GENERATOR, GAPS, CAP, POOL, TIMEOUTS)


def rules(run: Run) -> Iterator[Rule]:
    """In the order of CHECKS."""
    yield _lateness(run)
    yield _generator(run)
    yield _gaps(run)
    yield _cap(run)
    yield _pool(run)
    yield _timeouts(run)


def lateness_limit_s(run: Run) -> float:
    """max(5 ms, 1 % of the median latency of successful requests)."""
    e2e_s = (run.ok["done_s"] - run.ok["sent_s"]).dropna()
    median_s = float(e2e_s.median()) if len(e2e_s) else 0.0
    return max(LATENESS_FLOOR_S, LATENESS_SHARE * median_s)


def lateness_not_judged(run: Run) -> str | None:
    """Why lateness says nothing about this run's client; None when it does."""
    if run.virtual:
        return "virtual"
    if run.closed_loop:
        return "closed loop"
    load = load_of(run)
    if load.get("max_in_flight") is not None and load.get("overflow", "queue") == "queue":
        return "held by max_in_flight"
    return None


def load_of(run: Run) -> Mapping[str, Any]:
    """The scenario's ``load`` section; empty when the manifest has none."""
    return (run.manifest.get("scenario") or {}).get("load") or {}


def _lateness(run: Run) -> Rule:
    late_s = lateness_s(run)
    if (why := lateness_not_judged(run)) is not None or not len(late_s):
        return LATENESS.not_judged(why or "nothing was sent")
    p99_s, limit_s = float(np.quantile(late_s, 0.99)), lateness_limit_s(run)
    if p99_s > limit_s:
        return LATENESS.invalid(
            f"the client was late: lateness p99 {1e3 * p99_s:.3g} ms > {1e3 * limit_s:.3g} ms "
            "(the greater of 5 ms and 1 % of the median latency)",
            p99_s,
            limit_s,
        )
    return LATENESS.holds(f"lateness p99 {1e3 * p99_s:.3g} ms", p99_s, limit_s)


def _generator(run: Run) -> Rule:
    """Lateness alone can hide in a long latency's 1 %; a rate that is not reached cannot."""
    if (why := lateness_not_judged(run)) is not None:
        return GENERATOR.not_judged(why)
    sent = run.requests[run.requests["sent_s"].notna() & run.requests["due_s"].notna()].sort_values("due_s")
    due_s, sent_s = (sent[name].to_numpy(dtype=np.float64) for name in ("due_s", "sent_s"))
    if len(sent) < _FEWEST_SENT:
        return GENERATOR.not_judged(f"{len(sent)} requests were sent, {_FEWEST_SENT} needed")
    span_s = float(due_s[-1] - due_s[0])
    if span_s == 0:
        return GENERATOR.not_judged("all requests were due at one instant")
    late_s, fifth = sent_s - due_s, len(sent) // 5
    grown_s = float(np.median(late_s[-fifth:]) - np.median(late_s[:fifth]))
    reached = span_s / float(sent_s.max() - sent_s.min())
    offered, limit_s = (len(sent) - 1) / span_s, lateness_limit_s(run)
    rates = f"{reached * offered:.4g} requests/s were sent, {offered:.4g} were due"
    if reached < 1 - FELL_BEHIND or grown_s > limit_s:
        return GENERATOR.warns(
            f"the client fell behind: {rates}, and lateness grew by {1e3 * grown_s:.3g} ms from the first "
            "fifth to the last; the load was not the plan's",
            reached,
            1 - FELL_BEHIND,
        )
    return GENERATOR.holds(rates, reached, 1 - FELL_BEHIND)


def number_of(section: Mapping[str, Any], key: str) -> float | None:
    """A key of the section that is a number above 0; None where it is not."""
    value = section.get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _stated_cv(load: Mapping[str, Any]) -> tuple[float, str] | None:
    """The coefficient of variation of the gaps that the pattern's name promises, and the law in words."""
    low_s, high_s, shape = (
        number_of(load, "low_s") or 0.0,
        number_of(load, "high_s"),
        number_of(load, "burstiness"),
    )
    match load.get("pattern"):
        case "constant":
            return 0.0, "equal gaps"
        case "poisson":
            return 1.0, "exponential gaps"
        case "gamma" if shape is not None:
            return 1.0 / math.sqrt(shape), "gamma gaps"
        case "uniform" | "uniform_script" if high_s is not None:
            return (high_s - low_s) / (math.sqrt(3) * (high_s + low_s)), f"gaps of U({low_s:g}, {high_s:g}) s"
    return None


def _gaps(run: Run) -> Rule:
    """The spread of the gaps, by instants of sending; the script's sums are U(low, high) by name only."""
    load = load_of(run)
    stated = _stated_cv(load)
    if run.closed_loop or stated is None:
        return GAPS.not_judged("closed loop" if run.closed_loop else "the scenario names no law of the gaps")
    if (load.get("shaping") or {}).get("policy", "none") != "none":
        return GAPS.not_judged("shaping decides when requests are released")
    if load.get("max_in_flight") is not None:
        return GAPS.not_judged("held by max_in_flight")
    gap_s = np.diff(np.sort(run.requests["sent_s"].dropna().to_numpy(dtype=np.float64)))
    if len(gap_s) < _FEWEST_GAPS:
        return GAPS.not_judged(f"{len(gap_s)} gaps, {_FEWEST_GAPS} needed")
    cv, law = stated
    if cv > _HEAVY_CV:
        return GAPS.not_judged(f"gaps of CV {cv:.3g} scatter too widely for their spread to be told")
    if not float(gap_s.mean()) > 0:
        return GAPS.not_judged("all requests were sent at one instant")
    got = round(float(gap_s.std() / gap_s.mean()), 6)
    found = f"the gaps of what was sent have CV {got:.3g}, {law} have {cv:.3g}"
    if abs(got - cv) <= _CV_SLACK + 4 * cv * math.sqrt((0.5 + cv**2) / len(gap_s)):
        return GAPS.holds(found, got, cv)
    script = load.get("pattern") == "uniform_script"
    why = (
        ": each request sums draws of its own, so arrivals change places and come nearly as Poisson ones do"
        if script
        else ": the arrivals were not those of the plan's law"
    )
    return GAPS.warns(found + why, got, cv)


def _cap(run: Run) -> Rule:
    cap = load_of(run).get("max_in_flight")
    if run.closed_loop:
        return CAP.not_judged("closed loop: the cap is the load")
    if not len(run.requests):
        return CAP.not_judged("there are no records of measured requests")
    most = floor.most_in_flight(run)
    if cap is None:
        return CAP.holds(f"no cap; at most {most} requests were in flight", 0, CAPPED_SHARE)
    late_s = (run.requests["sent_s"] - run.requests["due_s"]).to_numpy(dtype=np.float64)
    dropped = int((run.requests["status"] == "dropped").sum())
    held = int(np.count_nonzero(late_s > LATENESS_FLOOR_S)) if most >= cap else 0
    share = (held + dropped) / len(run.requests)
    if share > CAPPED_SHARE:
        waited = f"{held} of {len(run.requests)} requests waited for a place"
        waited += f", {float(late_s[late_s > LATENESS_FLOOR_S].mean()):.3g} s on average" if held else ""
        return CAP.warns(
            f"max_in_flight {cap} was reached: {waited}, {dropped} were dropped; the server did not get the "
            "planned load, and latency from sent leaves the wait out",
            share,
            CAPPED_SHARE,
        )
    return CAP.holds(f"at most {most} requests were in flight, max_in_flight is {cap}", share, CAPPED_SHARE)


def _pool(run: Run) -> Rule:
    """What the records have in flight and the server does not know waits in between."""
    t_s, running, waiting = load_over_time(run)
    if not len(t_s) or np.isnan(running).all():
        return POOL.not_judged("the server did not tell how many requests it had (server.metrics_interval_s)")
    server = running + np.nan_to_num(waiting)
    spans = [frame[["sent_s", "done_s"]].dropna().to_numpy() for frame in (run.warmups, run.requests)]
    sent_s, done_s = (np.sort(np.concatenate([span[:, end] for span in spans])) for end in (0, 1))
    client: Floats = np.searchsorted(sent_s, t_s, "right") - np.searchsorted(done_s, t_s, "right") * 1.0
    busy = (client >= _BUSY) & ~np.isnan(server)
    looks = int(busy.sum())
    if looks < _FEWEST_LOOKS:
        return POOL.not_judged(
            f"{looks} looks at the server with {_BUSY} or more requests in flight, 5 needed"
        )
    share = float(server[busy].sum() / client[busy].sum())
    both = (
        f"at {looks} looks the records had {client[busy].mean():.3g} requests in flight on average, "
        f"the server knew of {server[busy].mean():.3g}"
    )
    if share < HELD_BACK:
        return POOL.warns(
            f"{both}: a connection pool or a proxy held the others, or several servers answer",
            share,
            HELD_BACK,
        )
    return POOL.holds(both, share, HELD_BACK)


def _timeouts(run: Run) -> Rule:
    """The largest group of failures of one age, where hardly any success is older."""
    n = len(run.requests)
    if not n:
        return TIMEOUTS.not_judged("there are no records of measured requests")
    failed = run.requests[run.requests["status"].isin(["error", "timeout"])]
    age_s = np.sort((failed["done_s"] - failed["sent_s"]).dropna().to_numpy(dtype=np.float64))
    taken_s = (run.ok["done_s"] - run.ok["sent_s"]).dropna().to_numpy(dtype=np.float64)
    age_s = age_s[age_s >= max(_YOUNGEST_S, float(np.median(taken_s)) if len(taken_s) else 0.0)]
    if not len(age_s):
        young = f"none of {len(failed)} failed requests lasted as long as a usual success"
        return TIMEOUTS.holds(
            young if len(failed) else "no request ended in an error or a timeout", 0, COMMON_SHARE
        )
    alike = np.searchsorted(age_s, age_s * (1 + _SAME_AGE), "right") - np.arange(len(age_s))
    first = int(np.argmax(alike))
    count, limit_s = int(alike[first]), float(np.median(age_s[first : first + int(alike[first])]))
    older = int(np.count_nonzero(taken_s > limit_s * (1 + _SAME_AGE)))
    share = count / n
    if count < _FEWEST_ALIKE or share < COMMON_SHARE or older > COMMON_SHARE * max(1, len(taken_s)):
        return TIMEOUTS.holds(
            f"of {len(failed)} failed requests at most {count} ended at one age", share, COMMON_SHARE
        )
    own_s = number_of(load_of(run), "timeout_s")
    whose = "load.timeout_s" if own_s and abs(limit_s / own_s - 1) <= _SAME_AGE else "a server or a proxy"
    return TIMEOUTS.warns(
        f"{count} of {n} requests ended without a reply after {limit_s:.3g} s (the limit of {whose}): the "
        "latencies of the successes are cut there, and the energy of these is in the figure per success",
        share,
        COMMON_SHARE,
    )
