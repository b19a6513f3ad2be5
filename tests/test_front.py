"""The Pareto front, its ranks and its hypervolume against slow references."""

from __future__ import annotations

import itertools

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from table_rows import ABOUT

from raybench.results.front import front, hypervolume, ranks


def slow_ranks(values: list[list[float]], directions: list[str]) -> list[int]:
    """Peels the front off, point by point."""

    def dominates(one: list[float], other: list[float]) -> bool:
        pairs = [
            (a, b) if way == "max" else (-a, -b)
            for a, b, way in zip(one, other, directions, strict=True)
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    found, left, level = {}, set(range(len(values))), 0
    while left:
        best = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        found |= dict.fromkeys(best, level)
        left -= best
        level += 1
    return [found[i] for i in range(len(values))]


small_values = st.integers(0, 4).map(float)  # few values, so that many are equal
points = st.integers(1, 3).flatmap(
    lambda dims: st.tuples(
        st.lists(st.lists(small_values, min_size=dims, max_size=dims), max_size=12),
        st.lists(st.sampled_from(["max", "min"]), min_size=dims, max_size=dims),
    )
)


def slow_hypervolume(costs: list[list[float]], reference: list[float]) -> int:
    """Unit cells below the reference that some point dominates."""
    cells = itertools.product(*(range(int(end)) for end in reference))
    return sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in costs)
        for cell in cells
    )


class TestHypervolume:
    @given(
        st.integers(1, 3).flatmap(
            lambda dims: st.tuples(
                st.lists(st.lists(small_values, min_size=dims, max_size=dims), max_size=8),
                st.lists(st.integers(0, 4).map(float), min_size=dims, max_size=dims),
            )
        )
    )
    def test_counts_what_is_dominated(self, case):
        costs, reference = case
        assert hypervolume(costs, reference) == slow_hypervolume(costs, reference)


class TestFront:
    @given(points)
    def test_ranks_equal_a_slow_reference(self, case):
        values, directions = case
        assert ranks(values, directions) == slow_ranks(values, directions)

    @given(
        st.lists(
            st.tuples(
                small_values | st.none(),
                small_values,
                st.sampled_from(["COMPLETE", "PRUNED", "FAILED", "RUNNING"]),
            ),
            max_size=12,
        )
    )
    def test_holds_the_undominated_complete_trials(self, rows):
        frame = pd.DataFrame(rows, columns=["accuracy", "loss", "status"])
        frame["accuracy"] = frame["accuracy"].astype("Float64")
        actual = front(frame, ABOUT["objectives"])
        eligible = [
            i for i, (a, _, status) in enumerate(rows) if status == "COMPLETE" and a is not None
        ]
        order = slow_ranks([list(rows[i][:2]) for i in eligible], ["max", "min"])
        assert sorted(actual.index) == [i for i, r in zip(eligible, order, strict=True) if r == 0]
        assert actual["accuracy"].tolist() == sorted(actual["accuracy"], reverse=True)

    def test_never_holds_a_stopped_or_failed_trial(self):
        frame = pd.DataFrame(
            {
                "status": ["PRUNED", "FAILED", "RUNNING", "COMPLETE"],
                "accuracy": [0.9, 0.9, 0.9, 0.1],
                "loss": [0.0, 0.0, 0.0, 1.0],
            }
        )
        assert front(frame, ABOUT["objectives"])["accuracy"].tolist() == [0.1]
