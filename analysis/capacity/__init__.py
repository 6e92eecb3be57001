"""Capacity: which boards, how many, at what cost in energy, money and carbon, for a traffic and its SLO.

A plan file or flags (`plan`) -> demand and lengths (`workload`) -> for every replica type the highest
rate that keeps the SLO (`search`, bracketed by `fluid`), what binds there (`binding`), the replicas and
their costs (`fleet`) -> a ranked answer (`answer`, `view`) and what would change it (`sensitivity`,
`shaping`). Everything here is simulated by `loadgen.emulation`.
"""
