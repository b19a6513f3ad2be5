"""What a trial reports once more, after it went on from an older checkpoint."""

from __future__ import annotations

import warnings

import pytest
from small_sweep import CONDITIONAL, ONE, PLAIN, abandon, metrics
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search.sweep import Sweep
from raybench.search.task import Task


def report(sweep: Sweep, task: Task, epoch: int, accuracy: float) -> bool:
    """Whether the trial is stopped."""
    return sweep.report(task.number, epoch, metrics(task, epoch) | {"accuracy": accuracy})


@pytest.fixture
def reopened(load, tmp_path):
    """A sweep of three trials whose first and worst has reported two epochs, opened again."""
    space = load(ONE, CONDITIONAL)
    first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
    tasks = [first.ask() for _ in range(3)]
    for epoch in (1, 2):
        for task, accuracy in zip(tasks, (0.1, 0.8, 0.9), strict=True):
            assert not report(first, task, epoch, accuracy)
    abandon(first)
    second = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
    second.rungs.evidence = 0  # it decides from the first trial on
    yield second
    second.close()


def test_the_last_epoch_it_had_reached_is_asked_about_again(reopened):
    """The answer may have been lost with the process: it is as bad as it was."""
    resumed = reopened.ask()
    assert not report(reopened, resumed, 1, 0.1), "that rung it has passed"
    assert report(reopened, resumed, 2, 0.1)


def test_the_study_hears_of_each_epoch_once(reopened):
    resumed = reopened.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of a step that was reported before
        report(reopened, resumed, 1, 0.1)
        report(reopened, resumed, 2, 0.1)
        report(reopened, resumed, 3, 0.1)
