"""Arrival processes: pure, seeded laws of the times at which requests are wanted.

Notation: t_0 <= t_1 <= ... are arrival instants in seconds, g_i = t_i - t_{i-1}
the gaps, U(a, b) the uniform law. `renewal`: independent gaps; `rates`: rates that
change with time; `study`: readings of the thank-you study; `replay`: recorded times.
"""

from __future__ import annotations

from loadgen.arrivals.rates import Dwell, Law, OnOff, Ramp, Sine, Stage, Steps
from loadgen.arrivals.renewal import AllAtOnce, ClosedLoop, Constant, Gamma, Poisson, Uniform
from loadgen.arrivals.replay import Trace
from loadgen.arrivals.shape import Shape, describe
from loadgen.arrivals.study import UniformLiteral, UniformScript
from loadgen.arrivals.within import count_within

__all__ = [
    "AllAtOnce",
    "ClosedLoop",
    "Constant",
    "Dwell",
    "Gamma",
    "Law",
    "OnOff",
    "Poisson",
    "Ramp",
    "Shape",
    "Sine",
    "Stage",
    "Steps",
    "Trace",
    "Uniform",
    "UniformLiteral",
    "UniformScript",
    "count_within",
    "describe",
]
