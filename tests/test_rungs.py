"""Early stopping: where the rungs are, and who goes on from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.search.rungs import Rungs

ONE = {"accuracy": "max"}
TWO = {"accuracy": "max", "model_bytes": "min"}


def arrive(rungs: Rungs, number: int, epoch: int = 1, **metrics: float | None) -> bool:
    rungs.record(number, epoch, metrics)
    return rungs.keeps(number, epoch)


def asha(objectives: dict[str, str], epochs: int) -> Rungs:
    """Rungs that decide from the first trial on."""
    return Rungs(objectives, epochs, evidence=0)


@pytest.mark.parametrize(
    ("epochs", "levels"),
    [
        (1, []),
        (2, [1]),
        (3, [1, 2]),
        (4, [1, 2, 3]),
        (8, [1, 3, 6]),
        (9, [1, 3, 6]),
        (10, [2, 4, 7]),
        (30, [4, 10, 20]),
        (100, [12, 34, 67]),
    ],
)
def test_levels(epochs, levels):
    assert Rungs(ONE, epochs).levels() == levels


class TestOneObjective:
    @given(st.permutations([i / 10 for i in range(10)]), st.sampled_from(["max", "min"]))
    def test_the_best_third_of_those_so_far_goes_on(self, values, direction):
        rungs = asha({"accuracy": direction}, 4)
        for number, value in enumerate(values):
            kept = arrive(rungs, number, accuracy=value)
            before = sorted(values[: number + 1], reverse=direction == "max")
            best = before[: max(1, (number + 1) // 3)]
            assert kept == (value in best)

    def test_in_the_worst_order_everybody_goes_on(self):
        """Each one is the best so far; the rule is asynchronous and never waits."""
        rungs = asha(ONE, 4)
        assert all(arrive(rungs, n, accuracy=n / 10) for n in range(10))

    def test_in_the_best_order_only_the_first_goes_on(self):
        rungs = asha(ONE, 4)
        assert [arrive(rungs, n, accuracy=-n) for n in range(8)] == [True] + [False] * 7
        assert not arrive(rungs, 8, accuracy=-8)
        assert arrive(rungs, 9, accuracy=-0.5)

    def test_each_rung_compares_its_own(self):
        rungs = asha(ONE, 9)
        assert arrive(rungs, 0, epoch=1, accuracy=0.9)
        assert not arrive(rungs, 1, epoch=1, accuracy=0.1)
        assert arrive(rungs, 1, epoch=3, accuracy=0.1)
        assert not arrive(rungs, 2, epoch=3, accuracy=0.05)

    def test_between_rungs_nobody_is_stopped(self):
        rungs = asha(ONE, 9)
        arrive(rungs, 0, epoch=2, accuracy=0.9)
        assert arrive(rungs, 1, epoch=2, accuracy=0.1)

    def test_nor_is_anybody_after_the_last_epoch(self):
        rungs = asha(ONE, 9)
        arrive(rungs, 0, epoch=9, accuracy=0.9)
        assert arrive(rungs, 1, epoch=9, accuracy=0.1)


class TestSeveralObjectives:
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=15),
    )
    def test_the_front_always_goes_on(self, points):
        rungs = asha(TWO, 4)
        for number, (accuracy, size) in enumerate(points):
            kept = arrive(rungs, number, accuracy=accuracy, model_bytes=size)
            dominated = any(
                a >= accuracy and s <= size and (a, s) != (accuracy, size)
                for a, s in points[: number + 1]
            )
            assert kept or dominated

    def test_a_dominated_trial_is_stopped(self):
        rungs = asha(TWO, 4)
        assert arrive(rungs, 0, accuracy=0.9, model_bytes=100)
        assert arrive(rungs, 1, accuracy=0.5, model_bytes=10)
        assert not arrive(rungs, 2, accuracy=0.8, model_bytes=200)
        assert arrive(rungs, 3, accuracy=0.6, model_bytes=50)  # between the two

    def test_a_dominated_trial_goes_on_where_it_is_in_the_best_third(self):
        rungs = asha(TWO, 4)
        for number in range(8):
            arrive(rungs, number, accuracy=0.1 + number / 100, model_bytes=1000 - number)
        assert arrive(rungs, 8, accuracy=0.9, model_bytes=10)
        assert arrive(rungs, 9, accuracy=0.8, model_bytes=20)
        assert arrive(rungs, 10, accuracy=0.7, model_bytes=30)
        assert not arrive(rungs, 11, accuracy=0.05, model_bytes=2000)


class TestMissing:
    @pytest.mark.parametrize("metrics", [{}, {"accuracy": 0.0}, {"model_bytes": 9e9}])
    def test_a_missing_metric_stops_nobody(self, metrics):
        rungs = asha(TWO, 4)
        for number in range(6):
            arrive(rungs, number, accuracy=0.9, model_bytes=10)
        assert arrive(rungs, 7, **metrics)
        assert arrive(rungs, 8, **{"accuracy": None, "model_bytes": None, **metrics})

    def test_an_objective_of_the_end_leaves_the_others_to_compare_by(self):
        """A latency is measured once, at the end: its sweep stops trials early all the same."""
        rungs = asha(TWO | {"latency_ms": "min"}, 4)
        assert arrive(rungs, 0, accuracy=0.9, model_bytes=100)
        assert arrive(rungs, 1, accuracy=0.5, model_bytes=10)
        assert not arrive(rungs, 2, accuracy=0.8, model_bytes=200)

    def test_nor_does_it_count_for_others(self):
        rungs = asha(ONE, 4)
        arrive(rungs, 0, accuracy=None)
        assert arrive(rungs, 1, accuracy=0.0)


class TestEvidence:
    """A rung stops nobody before complete trials have shown that it tells how they end."""

    def complete(self, rungs: Rungs, early: list[float], late: list[float], **metrics) -> None:
        for number, (first, last) in enumerate(zip(early, late, strict=True)):
            assert arrive(rungs, number, 1, accuracy=first, **metrics)
            rungs.record(number, 4, {"accuracy": last, **metrics})

    def test_nobody_is_stopped_before_enough_are_complete(self):
        rungs = Rungs(ONE, 4)
        self.complete(rungs, [0.5, 0.4, 0.3, 0.2], [0.9, 0.8, 0.7, 0.6])
        assert arrive(rungs, 4, accuracy=0.1)
        rungs.record(4, 4, {"accuracy": 0.5})
        assert not arrive(rungs, 5, accuracy=0.1)

    def test_a_rung_whose_order_is_not_that_of_the_end_stops_nobody(self):
        rungs = Rungs(ONE, 4)
        self.complete(rungs, [0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.9, 0.2, 0.8, 0.3])
        assert arrive(rungs, 5, accuracy=0.0)

    def test_nor_does_one_whose_order_is_the_reverse(self):
        """A correlation of -1 is as strong, and what it stopped would be the best."""
        rungs = Rungs(ONE, 4)
        self.complete(rungs, [0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5])
        assert not rungs.tells("accuracy", 1)
        assert arrive(rungs, 5, accuracy=0.0)

    def test_nor_does_one_at_which_all_are_alike(self):
        """Networks at chance: sizes alone would decide, which no epoch changes."""
        rungs = Rungs(TWO, 4)
        for number in range(6):
            sizes = {"model_bytes": 100.0 * (number + 1)}
            assert arrive(rungs, number, accuracy=0.1, **sizes)
            rungs.record(number, 4, {"accuracy": number / 10, **sizes})
        assert arrive(rungs, 6, accuracy=0.1, model_bytes=900)
        assert rungs.tells("model_bytes", 1)
        assert not rungs.tells("accuracy", 1)

    def test_an_objective_in_which_all_end_alike_stands_in_no_way(self):
        rungs = Rungs(TWO, 4)
        self.complete(rungs, [0.5, 0.4, 0.3, 0.2, 0.1], [0.9, 0.8, 0.7, 0.6, 0.5], model_bytes=9)
        assert not arrive(rungs, 5, accuracy=0.0, model_bytes=9)

    def test_a_trial_that_did_not_pass_the_rung_is_no_evidence(self):
        """It has a smaller number of epochs, or went on from a checkpoint."""
        rungs = Rungs(ONE, 4)
        for number in range(9):
            rungs.record(number, 4, {"accuracy": number / 10})
        assert arrive(rungs, 10, accuracy=0.9)
        assert arrive(rungs, 11, accuracy=0.1)

    def test_ties_share_their_rank(self):
        rungs = Rungs(ONE, 4)
        early, late = [0.1, 0.1, 0.1, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4, 0.9]
        self.complete(rungs, 2 * early, 2 * late)
        assert rungs.tells("accuracy", 1)  # by a correlation of 0.71

    @pytest.mark.parametrize("way", [ONE, TWO])
    def test_near_trials_are_told_apart_only_by_a_ranking_without_noise(self, way):
        """Ten trials; the next one is the sixth of them, outside the best third."""
        early = [number / 10 for number in range(10)]
        swapped = [early[number ^ 1] for number in range(10)]  # a correlation of 0.94
        for late, kept in ((early, False), (swapped, True)):
            rungs = Rungs(way, 4)
            more = {"model_bytes": 9.0} if way is TWO else {}
            self.complete(rungs, early, late, **more)
            assert not arrive(rungs, 10, accuracy=0.05, **more)
            assert arrive(rungs, 11, accuracy=0.45, **more) == kept

    def test_the_worst_of_many_is_compared_with_a_sample_that_lacks_it(self):
        rungs = Rungs(TWO, 4)
        early = [number / 300 for number in range(300)]
        self.complete(rungs, early, early, model_bytes=9.0)
        for number in range(300, 330):
            assert not arrive(rungs, number, accuracy=-number, model_bytes=9.0)

    def test_few_trials_agree_by_chance(self):
        """The same correlation, of five trials at a rung without a mark before it."""
        rungs = Rungs(ONE, 4)
        self.complete(rungs, [0.1, 0.1, 0.1, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4, 0.9])
        assert not rungs.tells("accuracy", 1)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 3, 9]), st.floats(0, 1)), max_size=30)
)
def test_rows_rebuild_every_decision(reports):
    """After a restart: the same rows, recorded anew, give the same answers."""
    live, rows = Rungs(ONE, 9, evidence=2), []
    for number, epoch, value in reports:
        row = {"number": number, "epoch": epoch, "accuracy": value, "loss": 1.0}
        decided = arrive(live, number, epoch, accuracy=value)
        rows.append(row)
        rebuilt = Rungs(ONE, 9, evidence=2)
        for old in rows:
            rebuilt.record(old["number"], old["epoch"], old)
        assert rebuilt.keeps(number, epoch) == decided
        for other in range(7):
            assert rebuilt.keeps(other, epoch) == live.keeps(other, epoch)
