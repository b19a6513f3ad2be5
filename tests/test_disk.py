"""A disk that is full, read-only or gone, at each kind of write of a sweep."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_sweep import CONDITIONAL, ONE, PLAIN, assert_study_agrees, drive, rows
from small_sweep import load as load

from raybench.results import store
from raybench.results.core import FINISHED
from raybench.search.sweep import Sweep

TRIALS = 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "raybench", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def run_on(folder: Path, space, trials: int = TRIALS) -> Sweep:
    sweep = Sweep(folder, space, trials=trials, overrides=PLAIN, keep="none")
    drive(sweep)
    sweep.close()
    return sweep


def test_a_full_disk_ends_the_sweep_and_room_lets_it_go_on(load, small_disk):
    space, folder = load(ONE, CONDITIONAL), small_disk / "s"
    sweep = Sweep(folder, space, trials=10_000, overrides=PLAIN, keep="none")
    with pytest.raises(OSError, match="No space left"):
        drive(sweep)
    known = {n: r["status"] for n, r in sweep.store.trials.items() if r["status"] in FINISHED}
    assert len(known) > 3
    with pytest.raises(OSError, match="No space left"):
        sweep.close()
    remount(small_disk, "size=10m")
    run_on(folder, space, trials=len(known) + 5)
    trial_rows = rows(folder)
    assert len(trial_rows) >= len(known) + 5
    assert {number: trial_rows[number]["status"] for number in known} == known
    assert_study_agrees(folder, space.objectives)


def test_a_disk_that_becomes_read_only(load, small_disk):
    space, folder = load(ONE, CONDITIONAL), small_disk / "s"
    remount(small_disk, "size=10m")
    run_on(folder, space, trials=3)
    before = rows(folder)
    remount(small_disk, "ro")
    with pytest.raises(OSError, match="Read-only"):
        Sweep(folder, space, trials=6, overrides=PLAIN)
    remount(small_disk, "rw")
    run_on(folder, space, trials=6)
    after = rows(folder)
    assert len(after) == 6
    assert {n: after[n]["accuracy"] for n in before} == {
        n: r["accuracy"] for n, r in before.items()
    }


def test_a_folder_that_vanishes(load, tmp_path):
    space = load(ONE, CONDITIONAL)
    sweep = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN)
    drive(sweep, reports=5)
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        sweep.store.snapshot()
    sweep.store._log.close()
    sweep._lock.release()


@pytest.mark.parametrize("kind", ["write", "fsync", "replace"])
def test_any_write_may_fail(load, tmp_path, monkeypatch, kind):
    """Of each kind the first, the next, and so on: an OSError, and nothing lost afterwards."""
    monkeypatch.setattr(store, "SNAPSHOT_EVERY_S", 0.0)
    monkeypatch.setattr(store, "SNAPSHOT_SHARE", 1e9)
    space, real = load(ONE, CONDITIONAL), getattr(os, kind)
    points = [1, 2, 3, 5, 8, 13, 21, 34, 55]
    failed = 0
    for point in points:
        folder, calls = tmp_path / f"{kind}{point}" / "s", 0

        def fail(*arguments: object, point: int = point) -> object:
            nonlocal calls
            calls += 1
            if calls >= point:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(os, kind, fail)
        sweep, ended = None, {}
        try:
            sweep = Sweep(folder, space, trials=6, overrides=PLAIN, keep="none")
            drive(sweep)
            sweep.close()
        except OSError:
            failed += 1
        monkeypatch.setattr(os, kind, real)
        if sweep is not None:
            rows_then = sweep.store.trials.items()
            ended = {n: row for n, row in rows_then if row["status"] in FINISHED}
            sweep._lock.release(force=True)
        run_on(folder, space, trials=6)
        trial_rows = rows(folder)
        assert len(trial_rows) == 6
        for number, row in ended.items():
            assert trial_rows[number]["accuracy"] == row["accuracy"]
        assert_study_agrees(folder, space.objectives)
    assert failed >= 4
