"""A run, or several beside each other, as one HTML file that needs nothing else: `loadgen report`."""

from analysis.report.document import Made, render, report, write

__all__ = ["Made", "render", "report", "write"]
