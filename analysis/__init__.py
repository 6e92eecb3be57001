"""What a request costs, from the files of a run: pure functions; nothing here touches a server or a clock.

import analysis

run = analysis.load("runs/20261121T101500Z-fixed_50ms-1a2b3c4d")
run.requests                          # a table, a row a request
analysis.summarize(run)["energy"]     # what `loadgen summary --json` prints
analysis.Attribution(run).window()    # joules of each request, by phase
"""

from analysis.attribution import Attribution
from analysis.run import Run
from analysis.run import load_run as load
from analysis.summary import summarize

__all__ = ["Attribution", "Run", "load", "summarize"]
