"""What the points of a sweep say together: means over seeds, ratios to a reference, a Pareto front."""

from analysis.sweeps.of_run import of_run
from analysis.sweeps.view import report

__all__ = ["of_run", "report"]
