"""Is the run whole, and how much of it succeeded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.energy import Part, PartEnergy
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.words import WH_PER_J, quantity

FAIR_SUCCESS = 0.95
_VALIDITY = "docs/method.md, When a run says that it is invalid"

ENDED = Check("run-ended", "the run ended by itself", "", _VALIDITY)
RECORDS = Check("records-complete", "every planned request has one record", "records", _VALIDITY)
SUCCESS = Check("some-success", "some request succeeded", "requests", _VALIDITY)
FAILURES = Check(
    "failures-in-denominator",
    "few enough requests failed for energy per request to be a fair headline",
    "1",
    "docs/lint.md, What goes wrong, 2 and script",
)
NOTED = Check("noted", "the run noted nothing odd", "", "docs/format.md, run.json, warnings")
CHECKS = (ENDED, RECORDS, SUCCESS, NOTED, FAILURES)


def rules(run: Run, parts: Mapping[Part, PartEnergy]) -> Iterator[Rule]:
    """In the order of CHECKS."""
    status = run.manifest.get("status")
    if status == "running":
        yield ENDED.invalid("incomplete: the run was killed or is still running")
    elif not run.complete:
        yield ENDED.invalid(f"incomplete: the run's status is {status!r}")
    else:
        yield ENDED.holds("the run's status is 'complete'")
    yield _records(run)
    n, ok = len(run.requests), len(run.ok)
    if n and not ok:
        yield SUCCESS.invalid("no request succeeded", 0, 1)
    elif not n:
        yield SUCCESS.not_judged("there are no records of measured requests")
    else:
        yield SUCCESS.holds(f"{ok} of {n} requests succeeded", ok, 1)
    noted = [str(w) for w in run.manifest.get("warnings") or ()]
    yield from [NOTED.warns(line) for line in noted] or [NOTED.holds("no warning in run.json")]
    yield _failures(n, ok, parts.get("gpu"))


def _records(run: Run) -> Rule:
    n = len(run.requests)
    if run.missing:
        return RECORDS.invalid(
            f"{n} records for {run.planned} planned requests: {run.missing} missing", n, run.planned
        )
    if n != run.planned:
        return RECORDS.invalid(f"{n} records for {run.planned} planned requests", n, run.planned)
    return RECORDS.holds(f"{n} records for {run.planned} planned requests", n, run.planned)


def _failures(n: int, ok: int, gpu: PartEnergy | None) -> Rule:
    """Both denominators, so that a reader sees what counting failures as requests would hide."""
    if not ok:
        return FAILURES.not_judged(
            "no request succeeded" if n else "there are no records of measured requests"
        )
    share = ok / n
    both = ""
    if gpu is not None and gpu.total_j is not None and ok < n:
        each, diluted = (quantity(WH_PER_J * gpu.total_j / count, "Wh") for count in (ok, n))
        both = f"; {each} per success would read {diluted} if failed requests were counted"
    if share < FAIR_SUCCESS:
        return FAILURES.warns(
            f"only {100 * share:.3g} % of the requests succeeded: energy per request is no fair headline "
            f"below {100 * FAIR_SUCCESS:g} % (the failed ones' energy is in it){both}",
            share,
            FAIR_SUCCESS,
        )
    return FAILURES.holds(f"{ok} of {n} requests succeeded{both}", share, FAIR_SUCCESS)
