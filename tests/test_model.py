"""The model of a search: forecasts of curves, the process, and the improvement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raybench.results.front import hypervolume
from raybench.search import gaussian_process, improvement
from raybench.search.encoding import Encoding
from raybench.search.forecast import agreement, forecast
from raybench.search.marks import marks

NAN = float("nan")


@given(st.integers(1, 2000))
def test_marks_are_few_and_end_with_the_last_epoch(epochs):
    every = marks(epochs)
    assert every[-1] == epochs
    assert every[0] >= 1
    assert len(every) == len(set(every)) <= 14


class TestForecast:
    def test_a_curve_that_keeps_its_order_is_carried_on(self):
        last = np.linspace(0.2, 0.9, 12)
        curves = np.stack([last / 2, last * 0.8, last], axis=1)
        curves[3, 2] = NAN
        means, deviations = forecast(curves)
        assert means[3] == pytest.approx(last[3], abs=0.03)
        assert deviations[3] < 0.1
        assert deviations[0] == 0

    def test_noise_says_nothing(self):
        random = np.random.default_rng(0)
        curves = random.normal(size=(60, 3))
        curves[0] = [5.0, NAN, NAN]
        means, deviations = forecast(curves)
        assert abs(means[0]) < 1.5
        assert deviations[0] > 0.7

    def test_the_horizon_is_where_some_trials_came(self):
        curves = np.array([[1.0, 2.0, NAN], [2.0, 3.0, NAN], [3.0, 4.0, NAN], [4.0, 5.0, NAN]])
        means, _ = forecast(curves)
        assert means.tolist() == [2.0, 3.0, 4.0, 5.0]

    def test_without_a_report_there_is_none(self):
        means, _ = forecast(np.array([[NAN, NAN], [1.0, 2.0]]))
        assert np.isnan(means[0])
        assert np.isnan(forecast(np.full((2, 3), NAN))[0]).all()

    def test_equal_values_agree_with_nothing(self):
        assert agreement(np.full(9, 0.1), np.arange(9.0)) == (0.0, 9)


class TestProcess:
    def test_it_learns_a_smooth_function(self):
        random = np.random.default_rng(1)
        points = random.random((40, 3))
        values = np.sin(3 * points[:, 0]) + points[:, 1] ** 2
        kernel = gaussian_process.fit(points, values, np.zeros(40))
        assert kernel.lengths[2] > 2 * kernel.lengths[0]  # the third changes nothing
        process = gaussian_process.posterior(kernel, points, values, np.zeros(40))
        new = random.random((20, 3))
        means, deviations = process.at(new)
        truth = np.sin(3 * new[:, 0]) + new[:, 1] ** 2
        assert np.abs(means - truth).max() < 0.15
        assert (deviations > 0).all()

    def test_an_uncertain_value_counts_less(self):
        points = np.array([[0.5], [0.5]])
        kernel = gaussian_process.Kernel(np.ones(1), 1.0, 1e-4)
        process = gaussian_process.posterior(
            kernel, points, np.array([0.0, 10.0]), np.array([0.0, 3.0])
        )
        assert process.at(points)[0][0] < 1


class TestImprovement:
    def test_the_reach_gives_the_hypervolume(self):
        front = np.array([[0.9, 0.2], [0.6, 0.6], [0.1, 0.95]])
        along = improvement.directions(2)
        volume = (improvement.reached(front, along) ** 2).mean() * np.pi / 4
        assert volume == pytest.approx(hypervolume((-front).tolist(), [0.0, 0.0]), rel=0.02)

    @pytest.mark.parametrize("objectives", [1, 2, 3])
    def test_what_is_surely_better_improves_and_what_is_worse_does_not(self, objectives):
        front = np.full((1, objectives), 0.5)
        means = np.array([[0.9] * objectives, [0.3] * objectives])
        better, worse = improvement.expected(means, np.full_like(means, 0.01), front)
        assert better > 0.1
        assert worse < 1e-6

    def test_for_one_objective_it_is_the_expected_improvement(self):
        (one,) = improvement.expected(np.array([[0.5]]), np.array([[0.2]]), np.array([[0.5]]))
        assert one == pytest.approx(0.2 * 0.3989, rel=0.05)


class TestEncoding:
    encoding = Encoding(
        {
            "lr": FloatDistribution(0.01, 1.0, log=True),
            "bits": IntDistribution(2, 8, step=2),
            "kind": CategoricalDistribution(["a", "b"]),
            "sparsity": FloatDistribution(0.0, 0.9),
        }
    )
    trials = (
        {"lr": 0.1, "bits": 4, "kind": 0.0},
        {"lr": 0.01, "bits": 8, "kind": 1.0, "sparsity": 0.5},
        {"lr": 1.0, "bits": 2, "kind": 1.0, "sparsity": 0.9},
    )

    def test_candidates_keep_the_conditions_of_the_space(self):
        table = self.encoding.table(self.trials)
        random = np.random.default_rng(0)
        drawn = self.encoding.drawn(table, 200, random)
        near = self.encoding.near(table, drawn, 0.1, random)
        for row in (*drawn, *near):
            params = self.encoding.external(row)
            assert ("sparsity" in params) == (params["kind"] == "b")
            assert params["bits"] in (2, 4, 6, 8)
            assert 0.01 <= params["lr"] <= 1.0

    def test_points_lie_in_the_cube(self):
        table = self.encoding.table(self.trials)
        conditional = np.isnan(table).any(0)
        points = self.encoding.points(table, conditional)
        assert points.shape == (3, len(self.encoding.labels(conditional)))
        assert ((points >= 0) & (points <= 1)).all()
        assert points[:, 0].tolist() == pytest.approx([0.5, 0.0, 1.0])
