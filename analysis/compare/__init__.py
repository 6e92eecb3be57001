"""Did A beat B, and by how much: runs set against a reference, headline by headline."""

from analysis.compare.compare import compare
from analysis.compare.comparison import Against, Comparison, Headline
from analysis.compare.sides import CompareError

__all__ = ["Against", "CompareError", "Comparison", "Headline", "compare"]
