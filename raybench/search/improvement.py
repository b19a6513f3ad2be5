"""The expected improvement of a front's hypervolume, for any number of objectives.

The hypervolume is the mean, over directions, of the length that the front reaches along each, to
the power of the number of objectives (Golovin and Zhang 2020, arXiv 2006.04655). With independent
normal forecasts the expected gain along a direction is an integral over a product of distribution
functions. For one objective it is the expected improvement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

DIRECTIONS = 12
NODES = 6
REACH = 2.5  # standard deviations above the mean that the integral covers


def directions(objectives: int) -> Array:
    """Unit vectors spread over the positive part of the sphere: (directions, objectives)."""
    if objectives == 1:
        return np.ones((1, 1))
    if objectives == 2:
        angles = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    drawn = np.abs(np.random.default_rng(0).normal(size=(2 * DIRECTIONS, objectives)))
    return np.maximum(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), 1e-3)


def reached(front: Array, along: Array) -> Array:
    """How far the front reaches along each direction: (directions,).

    Args:
        front: (points, objectives), larger is better, 0 is the reference.
    """
    if not len(front):
        return np.zeros(len(along))
    lengths = (np.maximum(front, 0)[:, None] / along[None]).min(-1)
    return np.asarray(lengths.max(0))


def expected(means: Array, deviations: Array, front: Array) -> Array:
    """The expected improvement of each candidate: (candidates,).

    Args:
        means: (candidates, objectives), larger is better, 0 is the reference.
        deviations: of the same shape.
    """
    objectives = means.shape[1]
    along = directions(objectives)
    now, reach = reached(front, along), means + REACH * deviations
    # Objective by objective: reductions over an axis of two or three are slow.
    ends = reach[:, :1] / along[:, 0]
    for place in range(1, objectives):
        np.minimum(ends, reach[:, place : place + 1] / along[:, place], out=ends)
    width = np.maximum(ends.max(0) - now, 0.0) / NODES
    lengths = now[:, None] + width[:, None] * (np.arange(NODES) + 0.5)
    above = np.ones((len(means), lengths.size))
    for place in range(objectives):
        edges = (lengths * along[:, place : place + 1]).ravel()
        above *= ndtr((means[:, place : place + 1] - edges) / deviations[:, place : place + 1])
    weights = objectives * lengths ** (objectives - 1) * width[:, None]
    return np.asarray(above @ weights.ravel() / len(along))
