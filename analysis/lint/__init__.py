"""Whether a run can be believed, and why not."""

from analysis.lint.client import lateness_limit_s, lateness_not_judged
from analysis.lint.judge import CATALOGUE, judge
from analysis.lint.rule import Rule, Verdict, Word

__all__ = [
    "CATALOGUE",
    "Rule",
    "Verdict",
    "Word",
    "judge",
    "lateness_limit_s",
    "lateness_not_judged",
]
