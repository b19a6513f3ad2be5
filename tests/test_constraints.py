"""Constraints: their form, the front, what is stopped, and what the model suggests."""

from __future__ import annotations

import pandas as pd
import pytest
from simulated import EPOCHS, TWO, curve, decisions, memory_sweep
from small_sweep import CONDITIONAL, PLAIN, drive, metrics
from small_sweep import TWO as TWO_OBJECTIVES
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results.front import front
from raybench.results.limits import Limit, limits
from raybench.results.read import read
from raybench.search.breaches import Breaches
from raybench.search.decisions import Decisions
from raybench.search.simulation.slots import simulate
from raybench.search.sweep import Sweep

SMALL = {"model_bytes": "<= 3000"}


class TestForm:
    def test_a_limit_is_a_sign_and_a_number(self):
        assert limits({"a": "<= 1_000", "b": ">=0.5"}) == (
            Limit("a", True, 1000.0),
            Limit("b", False, 0.5),
        )

    @pytest.mark.parametrize("text", ["< 3", "3", "<= many", "<= nan", None, 3])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(ValueError, match=r"write e\.g\."):
            limits({"model_bytes": text})

    def test_a_missing_value_does_not_keep_to_it(self):
        (limit,) = limits(SMALL)
        assert limit.holds({"model_bytes": 3000})
        assert not limit.holds({"model_bytes": 3001})
        assert not limit.holds({})

    def test_a_space_with_an_unknown_column_is_refused(self, load):
        with pytest.raises(ValueError, match="no constraint 'model_byte'"):
            load(TWO_OBJECTIVES, 'constraints = {"model_byte": "<= 1"}\n', CONDITIONAL)
        with pytest.raises(ValueError, match=r"write e\.g\."):
            load(TWO_OBJECTIVES, 'constraints = {"model_bytes": "< 1"}\n', CONDITIONAL)


def test_the_front_holds_only_what_keeps_to_them():
    frame = pd.DataFrame(
        {"status": "COMPLETE", "accuracy": [0.9, 0.8, 0.7], "model_bytes": [4000, 3000, None]}
    )
    assert front(frame, {"accuracy": "max"}, SMALL)["accuracy"].tolist() == [0.8]


def epoch(number: int, at: int, seconds: float):
    return ("epoch", 0.0, {"number": number, "epoch": at, "train_s": seconds})


class TestBreaches:
    (limit,) = limits({"train_s": "<= 10"})

    def grown(self) -> Breaches:
        breaches = Breaches([self.limit])
        for number in range(4):
            for at in range(1, 6):
                breaches.take(epoch(number, at, float(at)))
        return breaches

    def test_what_only_grows_does_not_come_back(self):
        breaches = self.grown()
        breaches.take(epoch(9, 1, 11.0))
        assert "it breaks train_s <= 10" in (breaches.reason(9) or "")
        assert breaches.reason(0) is None

    def test_what_came_back_once_may_again(self):
        breaches = self.grown()
        breaches.take(epoch(0, 6, 4.0))
        breaches.take(epoch(9, 1, 11.0))
        assert breaches.reason(9) is None

    def test_few_reports_prove_nothing(self):
        breaches = Breaches([self.limit])
        breaches.take(epoch(0, 1, 11.0))
        breaches.take(epoch(0, 2, 12.0))
        assert breaches.reason(0) is None


class TestRungs:
    """At rung 3 of 9 epochs, from how far do trials come back to 100 bytes?"""

    def swept(self, ends: list[float]) -> Decisions:
        deciding = decisions(TWO, constraints={"model_bytes": "<= 100"}, evidence=0)
        for number, end in enumerate(ends):
            deciding.take(("suggested", 0.0, {"number": number, "params": {}, "distributions": {}}))
            deciding.take(("trial", 0.0, {"number": number, "key": str(number)}))
            for at in range(1, EPOCHS + 1):
                size = 110.0 if at < EPOCHS else end
                row = {"number": number, "epoch": at, "accuracy": 0.5, "model_bytes": size}
                deciding.take(("epoch", 0.0, row))
            row = {"status": "COMPLETE", "accuracy": 0.5, "model_bytes": end}
            deciding.take(("trial", 0.0, {"number": number, **row}))
        return deciding

    def stops(self, deciding: Decisions, size: float) -> bool:
        """Whether a trial of this size that is the most accurate stops at the rung."""
        deciding.take(("trial", 0.0, {"number": 99, "key": "99"}))
        row = {"number": 99, "epoch": 3, "accuracy": 0.9, "model_bytes": size}
        deciding.take(("epoch", 0.0, row))
        return deciding.stops(99, 3)

    def test_what_is_farther_than_any_that_came_back_is_behind(self):
        deciding = self.swept([90.0] * 8)
        assert self.stops(deciding, 300.0)
        assert "breaks a constraint" in deciding.reasons[99]

    def test_what_is_as_far_as_some_that_came_back_goes_on(self):
        assert not self.stops(self.swept([90.0] * 8), 110.0)

    def test_few_complete_trials_prove_nothing(self):
        assert not self.stops(self.swept([90.0] * 4), 300.0)

    def test_the_best_of_those_behind_does_not_stop_the_others(self):
        deciding = self.swept([90.0] * 8)
        for number in range(50, 56):  # accurate, but far too large
            deciding.take(("trial", 0.0, {"number": number, "key": str(number)}))
            row = {"number": number, "epoch": 3, "accuracy": 0.99, "model_bytes": 300.0}
            deciding.take(("epoch", 0.0, row))
        assert not self.stops(deciding, 105.0)


def test_the_search_looks_where_they_hold():
    sweep = memory_sweep(TWO, constraints=SMALL)
    complete = simulate(sweep, lambda task: curve(task.params), slots=2, budget=30 * EPOCHS)
    kept = [one for one in complete if one.metrics["model_bytes"] <= 3000]
    assert len(kept) >= len(complete) / 2
    assert sweep.decisions.tally.front.keys() <= {one.number for one in kept}
    reasons = [content.get("stop_reason") for kind, _, content in sweep.records if kind == "trial"]
    assert any(reasons)


def test_a_sweep_stores_and_keeps_to_its_constraints(load, tmp_path):
    limit = 'constraints = {"model_bytes": "<= 1500"}\n'
    space = load(TWO_OBJECTIVES, limit, CONDITIONAL)
    sweep = Sweep(tmp_path / "s", space, trials=12, overrides=PLAIN, early_stopping=False)
    given = drive(sweep)
    small = {task.number for task in given if metrics(task, 1)["model_bytes"] <= 1500}
    assert sweep.tally.front.keys() <= small
    assert len(small) < len(given)
    sweep.close()
    results = read(tmp_path / "s")
    assert results.constraints == {"model_bytes": "<= 1500"}
    assert set(results.front["number"]) == set(sweep.tally.front)
    with pytest.raises(ValueError, match="holds another sweep"):
        Sweep(tmp_path / "s", load(TWO_OBJECTIVES, CONDITIONAL), trials=12, overrides=PLAIN)
