"""What a request costs, from the files of a run: pure functions; nothing here touches a server or a clock.

import analysis

run = analysis.load("runs/20261121T101500Z-fixed_50ms-1a2b3c4d")
run.requests                          # a table, a row a request
analysis.summarize(run)["energy"]     # what `loadgen summary --json` prints
analysis.Attribution(run).window()    # joules of each request, by phase

Modules import what is below them only (tests/test_layers.py): texts of numbers (`words`, `console`, `plain`);
a run as it was written (`run`) and its statistics (`stats`); what one kind of reading says (`latency`,
`energy`, `floor`, `server_metrics`); what follows from several (`attribution`, `lint`, `timeline`, `fit`,
`summary`); several runs (`compare`) and one as a whole (`study`); pictures (`figures`); pages (`report`).
"""

from analysis.attribution import Attribution
from analysis.run import Run
from analysis.run import load_run as load
from analysis.summary import summarize

__all__ = ["Attribution", "Run", "load", "summarize"]
