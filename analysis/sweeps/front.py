"""The Pareto front of points in two figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other beats, in the order of x; both figures the lower the better.

    q beats p when q is at most p in both and below it in one (Pareto dominance); equal points do not beat
    each other. Points with a value that is no number are left out. Sorted once and walked: O(n log n).
    """
    known = [k for k, (x, y) in enumerate(points) if not (math.isnan(x) or math.isnan(y))]
    ordered = sorted(known, key=lambda k: points[k])
    kept: list[int] = []
    lowest = math.inf
    for _, same_x in groupby(ordered, key=lambda k: points[k][0]):
        least, *rest = same_x
        if points[least][1] < lowest:
            lowest = points[least][1]
            kept += [least, *(k for k in rest if points[k][1] == lowest)]
    return kept
