"""The grid of CIFAR-10 as a space of its own: 180 configurations of a small network."""

from raybench.bench.grids.space import objectives as objectives
