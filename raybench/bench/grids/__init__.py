"""Recorded grids: every configuration of a small space, trained to its last epoch.

`python -m raybench.bench.grids.record NAME` records a grid again. Each folder is that of a sweep,
with only the columns that a simulation reads.
"""
