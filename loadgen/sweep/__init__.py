"""Sweeps: one scenario at many points of its keys, simulated without HTTP, kept as one tidy table.

`sweep_file` reads the file, `axes` makes its points, `point` simulates one, `store` keeps the rows,
`session` runs them all; what they say together is `analysis.sweeps`.
"""
