"""Sweeps in processes of their own: one at a time, and killed at any write."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
from pathlib import Path

import pandas as pd
import pytest
from small_sweep import CONDITIONAL, ONE, PLAIN, TWO, assert_study_agrees, drive, rows
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results import store
from raybench.results.core import FINISHED
from raybench.search.space import Space
from raybench.search.sweep import Sweep

fork = multiprocessing.get_context("fork")
DIED = 9


@pytest.fixture
def _eager_snapshots(monkeypatch):
    """The tables are written anew whenever a trial ends."""
    monkeypatch.setattr(store, "SNAPSHOT_EVERY_S", 0.0)
    monkeypatch.setattr(store, "SNAPSHOT_SHARE", 1e9)


def assert_sound(folder: Path, sweep_trials: int, objectives: dict[str, str]) -> None:
    """Every trial once, ended, and known to the study; every epoch once."""
    trial_rows = rows(folder)
    assert len(trial_rows) == sweep_trials
    assert len({row["key"] for row in trial_rows.values()}) == sweep_trials
    assert all(row["status"] in FINISHED for row in trial_rows.values())
    assert_study_agrees(folder, objectives)
    epochs = pd.read_parquet(folder / "epochs")
    assert not epochs.duplicated(["number", "epoch"]).any()
    for number, row in trial_rows.items():
        its_epochs = epochs[epochs["number"] == number]
        assert its_epochs["epoch"].tolist() == list(range(1, int(row["epoch"]) + 1))


def sweep_of_six(space: Space, folder: Path) -> None:
    """Six trials, two at a time."""
    sweep = Sweep(folder, space, trials=6, overrides=PLAIN)
    drive(sweep)
    sweep.close()


def writes_of_a_sweep(space: Space, folder: Path) -> int:
    """How often an undisturbed run waits for the disk."""
    count = itertools.count()
    os.fsync = lambda handle: next(count)
    sweep_of_six(space, folder)
    return next(count)


def run_until_write(point: int, space: Space, folder: Path) -> None:
    """Runs a sweep in this process, which ends without a word at its `point`-th write."""
    writes = itertools.count(1)

    def fsync(handle: int) -> None:
        if next(writes) == point:
            with contextlib.suppress(OSError):  # a folder cannot be torn
                if point % 2:
                    os.ftruncate(handle, max(0, os.fstat(handle).st_size - 7))
            os._exit(DIED)

    os.fsync = fsync
    sweep_of_six(space, folder)
    os._exit(0)


@pytest.fixture(scope="module")
def writes() -> dict[str, int]:
    """Counted once for each set of objectives."""
    return {}


class TestProcesses:
    def test_two_on_one_sweep_are_refused_until_the_first_is_gone(self, load, tmp_path):
        space = load(ONE, CONDITIONAL)
        opened, leave = fork.Event(), fork.Event()

        def hold() -> None:
            held = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
            opened.set()
            leave.wait(60)
            os._exit(DIED if held.unfinished == 2 else 0)  # without a word

        process = fork.Process(target=hold)
        process.start()
        assert opened.wait(60)
        with pytest.raises(ValueError, match=f"another process is running the sweep in {tmp_path}"):
            Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        leave.set()
        process.join(60)
        assert process.exitcode == DIED
        sweep = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        assert len(drive(sweep)) == 2
        sweep.close()

    @pytest.mark.slow
    @pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
    @pytest.mark.usefixtures("_eager_snapshots")
    @pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 0.6, 0.8, 0.99])
    def test_a_kill_at_any_write_loses_nothing(self, load, tmp_path, writes, objectives, share):
        """Killed at one of its writes to the disk, every other time with the end of it missing."""
        space, folder = load(objectives, CONDITIONAL), tmp_path / "s"
        if objectives not in writes:
            writes[objectives] = writes_of_a_sweep(space, tmp_path / "whole")
        point = math.ceil(share * writes[objectives])
        process = fork.Process(target=run_until_write, args=(point, space, folder))
        process.start()
        process.join(60)
        assert process.exitcode == DIED
        for table in ("trials", "epochs"):
            if list(folder.glob(f"{table}/*")):
                pd.read_parquet(folder / table)

        sweep = Sweep(folder, space, trials=6, overrides=PLAIN)
        before = {number: dict(row) for number, row in sweep.store.trials.items()}
        again = {task.number for task in drive(sweep)}
        sweep.close()
        assert_sound(folder, 6, space.objectives)
        trial_rows = rows(folder)
        for number, row in before.items():
            assert trial_rows[number]["params"] == row["params"]
            assert trial_rows[number]["key"] == row["key"]
            if row["status"] in FINISHED:
                assert number not in again
                assert trial_rows[number]["status"] == row["status"]
                assert trial_rows[number]["accuracy"] == row["accuracy"]
