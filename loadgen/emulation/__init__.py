"""The embedded engine without its HTTP: jobs in, instants and joules out, as fast as the engine goes.

What sweeps, the capacity planner and validation share. Everything in it is simulated.
"""

from loadgen.emulation.jobs import Jobs, Lengths, constant_lengths, jobs_of, lengths_of
from loadgen.emulation.replica import simulate
from loadgen.emulation.served import Served
from loadgen.emulation.works import Works, power_draws, redrawn_j

__all__ = [
    "Jobs",
    "Lengths",
    "Served",
    "Works",
    "constant_lengths",
    "jobs_of",
    "lengths_of",
    "power_draws",
    "redrawn_j",
    "simulate",
]
