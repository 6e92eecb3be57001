"""Whether a run can be believed, and why not."""

from analysis.lint.rules import Verdict, judge, lateness_limit_s, lateness_not_judged

__all__ = [
    "Verdict",
    "judge",
    "lateness_limit_s",
    "lateness_not_judged",
]
