"""A Gaussian process with a Matérn 5/2 kernel and one length scale per dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.blas import dtrsm
from scipy.optimize import minimize

Array = NDArray[np.float64]

JITTER = 1e-6
FITTED = 96  # latest points, used to fit the lengths; 8 dimensions take about 30 ms
STEPS = 25


@dataclass(frozen=True)
class Kernel:
    """The fitted hyperparameters."""

    lengths: Array
    variance: float
    noise: float
    """Variance that the inputs do not explain."""


@dataclass(frozen=True)
class Posterior:
    """A process conditioned on some points."""

    kernel: Kernel
    points: Array
    mean: float
    _factor: Array
    _weights: Array

    def at(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the function, without noise: (points,) each."""
        across = self._across(points)
        inner = _solved(self._factor, across)
        variance = self.kernel.variance - np.einsum("ij,ij->j", inner, inner)
        means = self.mean + across[:, : len(self._weights)] @ self._weights
        return means, np.sqrt(np.maximum(variance, 1e-10))

    def beside(self, points: Array) -> tuple[Posterior, Array]:
        """The process conditioned on its own means at some points, and those means.

        The means do not change, so only the factor of the covariance grows.
        """
        across = self._across(points)
        inner = _solved(self._factor, across)
        covariance = _matern(_squares(points, points, self.kernel.lengths)) * self.kernel.variance
        covariance[np.diag_indices_from(covariance)] += self.kernel.noise + JITTER
        corner = cholesky(covariance - inner.T @ inner, lower=True, check_finite=False)
        before = len(self.points)
        factor = np.zeros((before + len(points), before + len(points)), order="F")
        factor[:before, :before] = self._factor
        factor[before:, :before], factor[before:, before:] = inner.T, corner
        every = np.vstack([self.points, points])
        grown = Posterior(self.kernel, every, self.mean, factor, self._weights)
        return grown, self.mean + across[:, : len(self._weights)] @ self._weights

    def _across(self, points: Array) -> Array:
        """Covariances: (points, seen points)."""
        across = _matern(_squares(points, self.points, self.kernel.lengths))
        across *= self.kernel.variance
        return across


def _solved(factor: Array, across: Array) -> Array:
    """The factor's inverse times the transposed covariances: (seen points, points)."""
    return np.asarray(dtrsm(1.0, factor, across.T, lower=1))


def posterior(kernel: Kernel, points: Array, values: Array, deviations: Array) -> Posterior:
    """The process conditioned on values with given standard deviations: (points,) each."""
    precision = 1 / (kernel.noise + kernel.variance + deviations**2)
    mean = float((precision * values).sum() / precision.sum())
    covariance = _matern(_squares(points, points, kernel.lengths)) * kernel.variance
    covariance[np.diag_indices_from(covariance)] += kernel.noise + deviations**2 + JITTER
    factor = cholesky(covariance, lower=True, check_finite=False)
    weights = cho_solve((factor, True), values - mean, check_finite=False)
    return Posterior(kernel, points, mean, factor, weights)


def fit(points: Array, values: Array, deviations: Array) -> Kernel:
    """The kernel with the highest posterior density, given values of variance about 1.

    The prior's lengths grow with the square root of the dimension (Hvarfner et al. 2024, arXiv
    2402.02229).
    """
    points, values, deviations = points[-FITTED:], values[-FITTED:], deviations[-FITTED:]
    dimensions = points.shape[1]
    centre = np.array([*np.full(dimensions, np.log(0.5 * np.sqrt(dimensions))), 0.0, np.log(0.01)])
    width = np.array([*np.full(dimensions, 1.0), 0.7, 1.5])
    gaps = (points[:, None] - points[None]) ** 2
    values = values - np.average(values, weights=1 / (deviations**2 + 0.1))

    def loss(theta: Array) -> tuple[float, Array]:
        lengths, variance, noise = np.exp(theta[:-2]), np.exp(theta[-2]), np.exp(theta[-1])
        scaled = gaps / lengths**2
        root = np.sqrt(5 * scaled.sum(-1))
        decay = np.exp(-root)
        kernel = variance * (1 + root + root**2 / 3) * decay
        covariance = kernel.copy()
        covariance[np.diag_indices_from(covariance)] += noise + deviations**2 + JITTER
        factor = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((factor, True), np.eye(len(values)), check_finite=False)
        weights = inverse @ values
        off = (theta - centre) / width
        value = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        inner = 0.5 * (inverse - np.outer(weights, weights))
        slope = variance * (5 / 3) * (1 + root) * decay * inner
        by_length = np.einsum("ij,ijd->d", slope, scaled)
        gradient = [*by_length, (inner * kernel).sum(), np.trace(inner) * noise]
        return float(value), np.array(gradient) + off / width

    bounds = [*[(np.log(0.05), np.log(20.0))] * dimensions, (-3.0, 3.0), (np.log(1e-5), 0.0)]
    best = minimize(
        loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS}
    ).x
    return Kernel(np.exp(best[:-2]), float(np.exp(best[-2])), float(np.exp(best[-1])))


def _squares(one: Array, other: Array, lengths: Array) -> Array:
    a, b = one / lengths, other / lengths
    squares = (-2 * a) @ b.T
    squares += np.einsum("ij,ij->i", a, a)[:, None]
    squares += np.einsum("ij,ij->i", b, b)
    return np.maximum(squares, 0.0, out=squares)


def _matern(squares: Array) -> Array:
    """The kernel of variance 1; overwrites its argument."""
    squares *= 5
    root = np.sqrt(squares)
    squares /= 3
    squares += root
    squares += 1
    np.negative(root, out=root)
    squares *= np.exp(root, out=root)
    return squares
