"""What the points of a sweep say together: means over seeds, ratios to a reference, a Pareto front."""

from analysis.sweeps.front import front
from analysis.sweeps.of_run import of_run
from analysis.sweeps.study import Against, Cell, Study, study
from analysis.sweeps.view import report

__all__ = ["Against", "Cell", "Study", "front", "of_run", "report", "study"]
