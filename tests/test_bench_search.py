"""The bench of the search: its budget of epochs, and what counts of it."""

from __future__ import annotations

import math

import pytest
from small_sweep import CONDITIONAL, EPOCHS, PLAIN, TWO, drive, rows
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.bench.search import Budgeted, ideal, volume

NETWORK = {"accuracy": 0.9, "model_bytes": 1000, "latency_ms": 1.0}


def trial(accuracy: float, smaller: float, faster: float) -> dict[str, float]:
    times = {"model_bytes": 1000 / smaller, "latency_ms": 1 / faster}
    return {"accuracy": accuracy, **times}


class TestVolume:
    def test_of_one_trial_it_is_the_product_of_its_gains(self):
        actual = volume([trial(0.6, math.e, math.e**2)], NETWORK)
        assert actual == pytest.approx(0.5 * 1 * 2)

    def test_what_is_no_better_than_the_plain_network_or_chance_adds_nothing(self):
        rows = [trial(0.1, 4, 4), trial(1.0, 1, 4), trial(1.0, 4, 0.5)]
        assert volume(rows, NETWORK) == 0

    def test_a_dominated_trial_adds_nothing(self):
        best, worse = trial(0.6, 4, 4), trial(0.5, 4, 2)
        assert volume([best, worse], NETWORK) == pytest.approx(volume([best], NETWORK))

    def test_the_ideal_is_always_right_and_the_best_in_all_else(self):
        rows = [trial(0.6, 4, 1.5), trial(0.9, 2, 3), trial(0.3, 1, 1)]
        assert ideal(rows) == pytest.approx(trial(1.0, 4, 3))
        assert volume([ideal(rows)], NETWORK) > volume(rows, NETWORK)


class TestBudget:
    def sweep(self, load, tmp_path, **options) -> Budgeted:
        space = load(TWO, CONDITIONAL)
        return Budgeted(tmp_path / "sweep", space, trials=100, overrides=PLAIN, **options)

    def test_full_trials_use_it_up(self, load, tmp_path):
        sweep = self.sweep(load, tmp_path, early_stopping=False, budget=3 * EPOCHS)
        assert len(drive(sweep, concurrent=1)) == 3
        sweep.close()
        assert [row["number"] for row in sweep.rows] == [0, 1, 2]
        assert sweep.spent == sweep.budget

    def test_what_is_under_way_at_its_end_is_stopped_and_does_not_count(self, load, tmp_path):
        sweep = self.sweep(load, tmp_path, budget=10 * EPOCHS + 1)
        drive(sweep, concurrent=3)
        sweep.close()
        told = rows(tmp_path / "sweep")
        complete = {number for number, row in told.items() if row["status"] == "COMPLETE"}
        counted = {row["number"] for row in sweep.rows}
        assert counted <= complete
        assert len(complete - counted) <= 2  # that had their last epoch beyond it
        assert {row["status"] for row in told.values()} == {"COMPLETE", "PRUNED"}
        assert sweep.budget < sweep.spent <= sweep.budget + 3
        assert len(told) > 10  # stopped ones left epochs for others
