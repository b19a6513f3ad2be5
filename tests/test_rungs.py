"""Early stopping: where the rungs are, and who goes on from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.rungs import Rungs

ONE = {"accuracy": "max"}
TWO = {"accuracy": "max", "model_bytes": "min"}


def arrive(rungs: Rungs, number: int, epoch: int = 1, **metrics: float | None) -> bool:
    rungs.record(number, epoch, metrics)
    return rungs.keeps(number, epoch)


@pytest.mark.parametrize(
    ("epochs", "levels"),
    [
        (1, []),
        (2, [1]),
        (3, [1]),
        (4, [1, 3]),
        (9, [1, 3]),
        (10, [1, 3, 9]),
        (11, [2, 6]),
        (30, [3, 9, 27]),
        (100, [10, 30, 90]),
    ],
)
def test_levels(epochs, levels):
    assert Rungs(ONE, epochs).levels() == levels


def test_grace_and_reduction_move_the_levels():
    assert Rungs(ONE, 100, grace=4).levels() == [4, 12, 36]
    assert Rungs(ONE, 16, reduction=2, grace=2).levels() == [2, 4, 8]


class TestOneObjective:
    @given(st.permutations([i / 10 for i in range(10)]), st.sampled_from(["max", "min"]))
    def test_the_best_third_of_those_so_far_goes_on(self, values, direction):
        rungs = Rungs({"accuracy": direction}, 4)
        for number, value in enumerate(values):
            kept = arrive(rungs, number, accuracy=value)
            before = sorted(values[: number + 1], reverse=direction == "max")
            best = before[: max(1, (number + 1) // 3)]
            assert kept == (value in best)

    def test_in_the_worst_order_everybody_goes_on(self):
        """Each one is the best so far; the rule is asynchronous and never waits."""
        rungs = Rungs(ONE, 4)
        assert all(arrive(rungs, n, accuracy=n / 10) for n in range(10))

    def test_in_the_best_order_only_the_first_goes_on(self):
        rungs = Rungs(ONE, 4)
        assert [arrive(rungs, n, accuracy=-n) for n in range(8)] == [True] + [False] * 7
        assert not arrive(rungs, 8, accuracy=-8)
        assert arrive(rungs, 9, accuracy=-0.5)

    def test_each_rung_compares_its_own(self):
        rungs = Rungs(ONE, 9)
        assert arrive(rungs, 0, epoch=1, accuracy=0.9)
        assert not arrive(rungs, 1, epoch=1, accuracy=0.1)
        assert arrive(rungs, 1, epoch=3, accuracy=0.1)
        assert not arrive(rungs, 2, epoch=3, accuracy=0.05)

    def test_between_rungs_nobody_is_stopped(self):
        rungs = Rungs(ONE, 9)
        arrive(rungs, 0, epoch=2, accuracy=0.9)
        assert arrive(rungs, 1, epoch=2, accuracy=0.1)


class TestSeveralObjectives:
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=15),
    )
    def test_the_front_always_goes_on(self, points):
        rungs = Rungs(TWO, 4)
        for number, (accuracy, size) in enumerate(points):
            kept = arrive(rungs, number, accuracy=accuracy, model_bytes=size)
            dominated = any(
                a >= accuracy and s <= size and (a, s) != (accuracy, size)
                for a, s in points[: number + 1]
            )
            assert kept or dominated

    def test_a_dominated_trial_is_stopped(self):
        rungs = Rungs(TWO, 4)
        assert arrive(rungs, 0, accuracy=0.9, model_bytes=100)
        assert arrive(rungs, 1, accuracy=0.5, model_bytes=10)
        assert not arrive(rungs, 2, accuracy=0.8, model_bytes=200)
        assert arrive(rungs, 3, accuracy=0.6, model_bytes=50)  # between the two

    def test_a_dominated_trial_goes_on_where_it_is_in_the_best_third(self):
        rungs = Rungs(TWO, 4)
        for number in range(8):
            arrive(rungs, number, accuracy=0.1 + number / 100, model_bytes=1000 - number)
        assert arrive(rungs, 8, accuracy=0.9, model_bytes=10)
        assert arrive(rungs, 9, accuracy=0.8, model_bytes=20)
        assert arrive(rungs, 10, accuracy=0.7, model_bytes=30)
        assert not arrive(rungs, 11, accuracy=0.05, model_bytes=2000)


class TestMissing:
    @pytest.mark.parametrize("metrics", [{}, {"accuracy": 0.0}, {"model_bytes": 9e9}])
    def test_a_missing_metric_stops_nobody(self, metrics):
        rungs = Rungs(TWO, 4)
        for number in range(6):
            arrive(rungs, number, accuracy=0.9, model_bytes=10)
        assert arrive(rungs, 7, **metrics)
        assert arrive(rungs, 8, **{"accuracy": None, "model_bytes": None, **metrics})

    def test_an_objective_of_the_end_leaves_the_others_to_compare_by(self):
        """A latency is measured once, at the end: its sweep stops trials early all the same."""
        rungs = Rungs(TWO | {"latency_ms": "min"}, 4)
        assert arrive(rungs, 0, accuracy=0.9, model_bytes=100)
        assert arrive(rungs, 1, accuracy=0.5, model_bytes=10)
        assert not arrive(rungs, 2, accuracy=0.8, model_bytes=200)

    def test_nor_does_it_count_for_others(self):
        rungs = Rungs(ONE, 4)
        arrive(rungs, 0, accuracy=None)
        assert arrive(rungs, 1, accuracy=0.0)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 3]), st.floats(0, 1)), max_size=30)
)
def test_rows_rebuild_every_decision(reports):
    """After a restart: the same rows, recorded anew, give the same answers."""
    live, rows = Rungs(ONE, 9), []
    for number, epoch, value in reports:
        row = {"number": number, "epoch": epoch, "accuracy": value, "loss": 1.0}
        decided = arrive(live, number, epoch, accuracy=value)
        rows.append(row)
        rebuilt = Rungs(ONE, 9)
        for old in rows:
            rebuilt.record(old["number"], old["epoch"], old)
        assert rebuilt.keeps(number, epoch) == decided
        for other in range(7):
            assert rebuilt.keeps(other, epoch) == live.keeps(other, epoch)
