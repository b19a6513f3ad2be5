"""A warm start: what older sweeps say, and how little it costs where it is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from simulated import EPOCHS, TWO, curve, decisions, memory_sweep, suggest
from small_sweep import CONDITIONAL, PLAIN, drive, rows
from small_sweep import TWO as TWO_OBJECTIVES
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search import guide, prior
from raybench.search.simulation.memory_sweep import MemorySweep
from raybench.search.simulation.slots import simulate
from raybench.search.sweep import Sweep
from raybench.search.trend import openers, trend

BUDGET = 30 * EPOCHS


def older_records(seed: int = 7):
    sweep = memory_sweep(TWO, seed=seed)
    simulate(sweep, lambda task: curve(task.params), slots=2, budget=BUDGET)
    return sweep.records


def test_the_first_trials_are_the_best_older_ones():
    prior_content = {"sweeps": [prior.of_records(older_records(), TWO)]}
    (guests,) = prior.guests(prior_content, list(TWO), EPOCHS)
    best = openers(guests, TWO, [EPOCHS])
    assert len(best) > 1
    sweep = MemorySweep(decisions(TWO), suggest, records=[("prior", 0.0, prior_content)])
    assert [sweep.ask().params for _ in best] == best
    assert sweep.ask().params not in [guest.external() for guest in guests]


def test_older_predictions_count_only_at_first(monkeypatch):
    used = []

    def counted(view, older):
        used.append(len(view.table))
        return trend(view, older)

    monkeypatch.setattr(guide, "trend", counted)
    record = ("prior", 0.0, {"sweeps": [prior.of_records(older_records(), TWO)]})
    sweep = MemorySweep(decisions(TWO), suggest, records=[record])
    simulate(sweep, lambda task: curve(task.params), slots=2, budget=BUDGET)
    assert guide.FIRST_FIT <= min(used) <= max(used) < guide.GROWTH * guide.TRUSTED
    assert sweep.decisions.tally.next_number > 2 * guide.TRUSTED


def test_decisions_are_the_same_after_a_restart():
    record = ("prior", 0.0, {"sweeps": [prior.of_records(older_records(), TWO)]})
    sweep = MemorySweep(decisions(TWO), suggest, records=[record])
    simulate(sweep, lambda task: curve(task.params), slots=2, budget=BUDGET)
    asked = [place for place, (kind, _, _) in enumerate(sweep.records) if kind == "suggested"]
    for place in asked[::6]:
        again = MemorySweep(decisions(TWO), suggest, records=sweep.records[:place])
        again.ask()
        assert again.records[place][2]["params"] == sweep.records[place][2]["params"]


def test_a_parameter_that_the_new_space_lacks_is_left_out():
    guests = prior.guests({"sweeps": [prior.of_records(older_records(), TWO)]}, list(TWO), EPOCHS)
    (guest, *_) = guests[0]
    assert prior.translated(guest, {}).params == {}


class TestSweep:
    def test_begins_with_what_was_best_and_no_longer_needs_the_old_one(self, load, tmp_path):
        space = load(TWO_OBJECTIVES, CONDITIONAL)
        old = Sweep(tmp_path / "old", space, trials=10, overrides=PLAIN)
        drive(old)
        old.close()
        new = Sweep(
            tmp_path / "new", space, trials=6, overrides=PLAIN, warm_start=[tmp_path / "old"]
        )
        drive(new, reports=3)
        new.close()
        shutil.rmtree(tmp_path / "old")
        again = Sweep(tmp_path / "new", space, trials=6, overrides=PLAIN)
        drive(again)
        again.close()
        params = [json.loads(row["params"]) for row in rows(tmp_path / "new").values()]
        assert len(params) == 6

    def test_a_folder_without_a_sweep_is_refused(self, load, tmp_path):
        space = load(TWO_OBJECTIVES, CONDITIONAL)
        with pytest.raises(ValueError, match="holds no sweep"):
            Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN, warm_start=[tmp_path / "no"])
        assert not (tmp_path / "s").exists()
