"""Recorded grids: every configuration of a small space, trained to its last epoch.

`python -m raybench.bench.grids.record NAME` trains one again. Each folder is a sweep's, with only
the columns that a simulation reads.
"""
