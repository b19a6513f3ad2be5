"""One of our sweeps as a problem for the simulator, and the grids that come with raybench."""

from __future__ import annotations

import optuna
import pandas as pd
import pytest
from simulated import TWO as OBJECTIVES
from simulated import decisions
from small_sweep import CONDITIONAL, EPOCHS, PLAIN, TWO, drive, metrics
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.bench.grids.shipped import FOLDER, NAMES
from raybench.search.simulation.memory_sweep import MemorySweep
from raybench.search.simulation.recorded import Recorded
from raybench.search.simulation.slots import simulate
from raybench.search.sweep import Sweep


@pytest.fixture
def swept(load, tmp_path):
    """A finished sweep's folder and its tasks."""
    sweep = Sweep(
        tmp_path / "s",
        load(TWO, CONDITIONAL),
        trials=12,
        overrides=PLAIN,
        early_stopping=False,
        sampler="random",
    )
    tasks = drive(sweep)
    sweep.close()
    return tmp_path / "s", tasks


def test_a_recorded_trial_has_its_own_curve(swept):
    folder, tasks = swept
    problem = Recorded(folder).problem("s")
    assert (problem.epochs, problem.objectives) == (EPOCHS, OBJECTIVES)
    assert len(problem.every) == len(tasks) == 12
    for task, params in zip(tasks, problem.every, strict=True):
        its_curve = problem.curve(params)
        for epoch in (1, EPOCHS):
            expected = metrics(task, epoch)
            assert its_curve.at(epoch) == pytest.approx(
                {name: expected[name] for name in OBJECTIVES}
            )


def test_a_suggestion_becomes_a_configuration_that_was_tried(swept):
    problem = Recorded(swept[0]).problem("s")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    suggested = [problem.suggest(study.ask()) for _ in range(60)]
    assert all(one in problem.every for one in suggested)
    assert len({str(one) for one in suggested}) > 6


def test_a_tried_configuration_is_the_nearest_to_itself(swept):
    """A conditional parameter is asked for where its parent has it, and only there."""
    problem = Recorded(swept[0]).problem("s")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        trial = study.ask()
        nearest = problem.suggest(trial)
        assert trial.params.keys() == nearest.keys()


def test_a_folder_without_trials_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        Recorded(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_grid_is_small_whole_and_searchable(name):
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.rglob("*.parquet")) < 200_000
    problem = Recorded(folder).problem(name)
    assert len(problem.every) >= 150
    epochs = pd.read_parquet(folder / "epochs")
    assert epochs.groupby("number").size().eq(problem.epochs).mean() > 0.95
    sweep = MemorySweep(decisions(problem.objectives, sampler="random"), problem.suggest, trials=20)
    complete = simulate(sweep, lambda task: problem.curve(task.params), slots=2, budget=10**4)
    assert complete
