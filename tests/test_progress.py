"""What a person sees of a running sweep, with few slots and with many."""

from __future__ import annotations

import pytest
from small_sweep import CONDITIONAL, EPOCHS, ONE, PLAIN, drive, metrics
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search.progress import SHOWN, Progress
from raybench.search.sweep import Sweep


@pytest.fixture
def sweep(load, tmp_path):
    space = load(ONE, CONDITIONAL)
    opened = Sweep(tmp_path / "s", space, trials=100, overrides=PLAIN, sampler="random")
    yield opened
    opened.close()


def cells(progress: Progress, column: int) -> list[str]:
    return [str(cell) for cell in progress._table().columns[column].cells]


def test_sixty_four_at_once(sweep):
    progress = Progress(sweep)
    tasks = [sweep.ask() for _ in range(64)]
    assert progress.line().startswith("0/100 trials, 64 running, ")
    assert cells(progress, 0) == [str(number) for number in range(63, 63 - SHOWN, -1)]
    for epoch in range(1, EPOCHS + 1):
        sweep.report(tasks[5].number, epoch, metrics(tasks[5], epoch))
    sweep.finish(5, "COMPLETE")
    assert progress.line().startswith("1/100 trials, 63 running, best accuracy ")
    assert "left" in progress.line()


def test_who_runs_stands_above_who_has_ended(sweep):
    progress = Progress(sweep)
    drive(sweep, reports=10 * EPOCHS)
    running = list(sweep.tally.running)
    assert running
    shown = [int(number) for number in cells(progress, 0)]
    assert shown[: len(running)] == running[::-1]
    ended = shown[len(running) :]
    assert ended == sorted(ended, reverse=True)
    assert set(ended) <= set(sweep.tally.latest)
    assert len(shown) == min(SHOWN, sweep.tally.trials)


def test_accuracy_is_in_percent(sweep):
    progress = Progress(sweep)
    task = sweep.ask()
    for epoch in range(1, EPOCHS + 1):
        sweep.report(task.number, epoch, {**metrics(task, epoch), "accuracy": 0.4567})
    sweep.finish(task.number, "COMPLETE")
    assert "best accuracy 45.67 %" in progress.line()
    assert progress._table().columns[3].header == "accuracy, %"
    assert cells(progress, 3) == ["45.67"]


def test_a_trial_whose_space_raised_has_a_row(sweep):
    progress = Progress(sweep)
    drive(sweep, reports=EPOCHS)
    sweep.store.put_trial(
        {"sweep": "s", "trial": "s-0099", "number": 99, "status": "RUNNING", "params": "{}"}
    )
    sweep.finish(99, "FAILED", "the space raised KeyError: 'x'")
    assert "99" in cells(progress, 0)
    assert "0/?" in cells(progress, 2)
