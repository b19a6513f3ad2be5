"""A study as a sweep's proposals: within its budget, through kills, with what it learnt before."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raybench.arguments.duration import seconds_of
from raybench.search.overrides import Overrides
from raybench.search.sweep import Sweep
from raybench.techniques.ema import Ema
from raybench.techniques.prune import Prune
from raybench.verdict import prepared
from raybench.verdict.arms import Arms, Run
from raybench.verdict.policy import BASELINE, Design
from raybench.verdict.study import SPENT, Clock, Study
from trainers.which_pays import base

SETTINGS = {
    "prune": tuple({"prune": one} for one in Prune.candidates("")),
    "ema": tuple({"ema": one} for one in Ema.candidates("")),
}
ARMS = Arms(base, SETTINGS)
DESIGN = prepared.design_of(ARMS, base, tuning=2, seeds=2, most_seeds=2)


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def opened(folder: Path, clock: Clock | None = None, design: Design = DESIGN) -> Sweep:
    space = prepared.space_of(ARMS, prepared.asked(ARMS, design))
    study = partial(
        Study, design, ARMS, clock=clock or Clock(), seconds={"": 8.0, "prune": 8.0, "ema": 8.0}
    )
    return Sweep(
        folder / "study",
        space,
        trials=10**6,
        overrides=Overrides(),
        keep="none",
        early_stopping=False,
        sampler="random",
        proposer=lambda _, sampling: study(sampling=sampling),
    )


def trained(sweep: Sweep, trials: int = 10**6, wall_s: float = 8.0) -> int:
    """Runs trials to their end, one at a time; how many."""
    for done in range(trials):
        if (task := sweep.ask()) is None:
            return done
        accuracy = 0.9 - 0.001 * task.experiment.seed
        metrics: dict[str, Any] = {"accuracy": accuracy, "test_accuracy": accuracy}
        sizes = {"model_bytes": 500 if task.experiment.prune else 1000, "memory_bytes": 10}
        metrics |= {**sizes, "s_per_epoch": 1.0, "wall_s": wall_s}
        sweep.report(task.number, task.experiment.recipe.epochs, metrics)
        sweep.finish(task.number, "COMPLETE")
    return trials


def test_a_run_is_the_experiment_of_its_parameters():
    run = Run((("prune", 2),), -1, 5, 3)
    assert ARMS.run_of(run.params(ARMS.techniques)) == run
    experiment = ARMS.experiment(run)
    assert experiment.prune == Prune(final_sparsity=0.8)
    assert (experiment.seed, experiment.recipe.epochs, experiment.ema) == (3, 5, None)
    assert experiment.recipe.lr == pytest.approx(base.recipe.lr / 2**0.5)


def test_the_whole_study_runs_and_ends(tmp_path):
    sweep = opened(tmp_path)
    study = sweep.proposals
    trained(sweep)
    assert study.over
    assert sweep.unfinished == 0
    assert set(study.state().chosen) == {BASELINE, ("prune",), ("ema",)}
    assert len(sweep.tally.keys) == sweep.tally.trials == len(study.history)
    assert {sweep.store.trials[n]["family"] for n in study.numbers.values()} == {"which_pays"}
    sweep.close()


def test_a_slot_waits_for_what_decides_the_next_run(tmp_path):
    sweep = opened(tmp_path)
    asked = [sweep.ask() for _ in range(3)]
    assert [task is None for task in asked] == [False, False, True]  # the baseline's tuning
    assert not sweep.proposals.over
    assert not sweep.proposals.ready
    sweep.close()


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_a_killed_study_goes_on_to_the_same_end(tmp_path, stop):
    whole = opened(tmp_path / "whole")
    count = trained(whole)
    whole.close()
    killed = opened(tmp_path / "killed")
    trained(killed, stop)
    killed.ask()  # under way as it is killed
    killed.close()
    again = opened(tmp_path / "killed")
    assert stop + trained(again) == count
    assert again.proposals.state().chosen == whole.proposals.state().chosen
    again.close()


def test_no_run_begins_that_cannot_end_within_the_budget(tmp_path):
    clock = Clock(budget_s=1000.0, reserved_s=900.0)
    clock.began = time.monotonic() - 80  # 20 s are left: two trials of 8 s, by their margin
    sweep = opened(tmp_path, clock)
    assert trained(sweep, 1) == 1
    clock.began -= 15
    assert sweep.ask() is None
    assert sweep.proposals.out_of_time
    assert sweep.proposals.over
    sweep.close()


def test_a_larger_budget_goes_on_with_what_was_spent(tmp_path):
    clock = Clock(budget_s=100.0)
    sweep = opened(tmp_path, clock)
    sweep.proposals.remember = lambda seconds: sweep.store.put(SPENT, {"seconds": seconds + 1})
    trained(sweep, 3)
    assert clock.spent_s() < 5  # what it remembers of itself does not count twice
    sweep.store.put(SPENT, {"seconds": 90.0})
    sweep.close()
    small, large = Clock(budget_s=95.0), Clock(budget_s=1000.0)
    sweep = opened(tmp_path, small)
    assert small.spent_s() == pytest.approx(90, abs=5)
    assert sweep.ask() is None
    sweep.close()
    sweep = opened(tmp_path, large)
    assert trained(sweep) > 3
    sweep.close()


def test_trials_that_take_longer_than_planned_count_for_the_next_ones(tmp_path):
    sweep = opened(tmp_path)
    trained(sweep, 2, wall_s=80.0)
    run = Run((), 4, base.recipe.epochs, 0)
    assert sweep.proposals.seconds(run) == pytest.approx(80.0)
    sweep.close()


def test_another_study_in_the_folder_is_refused(tmp_path):
    folder = tmp_path / "study"
    wanted = prepared.asked(ARMS, DESIGN)
    begun = prepared.Kept(design=DESIGN, costs={}, remarks=("shrunk",))
    prepared.keep(folder, wanted, begun)
    assert prepared.kept(folder, wanted, DESIGN) == begun
    with pytest.raises(ValueError, match=r"another study \(other within\)"):
        prepared.kept(folder, {**wanted, "within": 2.0}, DESIGN)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400)]
)
def test_a_budget_as_people_write_it(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-1h", "0m", "1.2.3h"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="a time such as 45m, 2h or 1h30m"):
        seconds_of(text)
