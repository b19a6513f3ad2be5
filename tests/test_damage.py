"""The files of a sweep, damaged at random: whatever was in any of them is there again."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from small_sweep import (
    CONDITIONAL,
    ONE,
    PLAIN,
    TWO,
    abandon,
    assert_study_agrees,
    drive,
    rows,
)
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results import store
from raybench.results.core import FINISHED
from raybench.search.space import Space
from raybench.search.sweep import Sweep

FILES = (
    ".state/log",
    ".state/study.journal",
    "trials/trials.parquet",
    "epochs/epochs-00000.parquet",
    "epochs/epochs-00001.parquet",
)
TRIALS = 9


def damage(path: Path, draw: random.Random) -> str:
    """Damages a file in one of the ways in which files are found damaged; says how."""
    content = bytearray(path.read_bytes())
    how = draw.choice(["cut", "emptied", "zeroed", "flipped", "deleted"])
    start = draw.randrange(len(content))
    if how == "cut":
        del content[start:]
    elif how == "emptied":
        content.clear()
    elif how == "zeroed":
        end = min(len(content), start + draw.choice([1, 512, 4096, 10**9]))
        content[start:end] = bytes(end - start)
    elif how == "flipped":
        for _ in range(draw.choice([1, 3])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    if how == "deleted":
        path.unlink()
    return f"{path.name} {how} at {start}"


@pytest.fixture
def ended(load, tmp_path, monkeypatch) -> tuple[Space, Path]:
    """A sweep with two parts of epochs, closed in order while a trial runs."""
    monkeypatch.setattr(store, "PART_ROWS", 12)
    monkeypatch.setattr(store, "SNAPSHOT_EVERY_S", 0.0)
    monkeypatch.setattr(store, "SNAPSHOT_SHARE", 1e9)
    space = load(TWO, CONDITIONAL)
    sweep = Sweep(tmp_path / "whole" / "s", space, trials=TRIALS, overrides=PLAIN)
    drive(sweep, reports=22)
    assert sweep.tally.running
    sweep.store.snapshot()
    abandon(sweep)
    assert (tmp_path / "whole/s" / FILES[-1]).exists()
    return space, tmp_path / "whole" / "s"


def survives(space: Space, whole: Path, folder: Path, seed: int) -> None:
    shutil.copytree(whole, folder)
    draw = random.Random(seed)
    said = f"case {seed}: {damage(folder / draw.choice(FILES), draw)}"
    before, epochs_before = rows(whole), pd.read_parquet(whole / "epochs")
    sweep = Sweep(folder, space, trials=TRIALS, overrides=PLAIN)
    sweep.close()
    trial_rows = rows(folder)
    assert trial_rows.keys() == before.keys(), said
    for number, row in before.items():
        pd.testing.assert_series_equal(pd.Series(trial_rows[number]), pd.Series(row), obj=said)
    epochs = pd.read_parquet(folder / "epochs")
    order = ["number", "epoch"]
    pd.testing.assert_frame_equal(
        epochs.sort_values(order, ignore_index=True),
        epochs_before.sort_values(order, ignore_index=True),
        obj=said,
    )
    again = Sweep(folder, space, trials=TRIALS, overrides=PLAIN)
    assert again.store.remarks == [], said
    drive(again)
    again.close()
    now = rows(folder)
    assert len(now) == TRIALS, said
    for number, row in before.items():
        if row["status"] in FINISHED:
            pd.testing.assert_series_equal(pd.Series(now[number]), pd.Series(row), obj=said)
        else:
            assert now[number]["params"] == row["params"], said
    assert_study_agrees(folder, space.objectives)
    shutil.rmtree(folder)


def test_what_was_on_disk_survives_damage(ended, tmp_path):
    space, whole = ended
    for seed in range(40):
        survives(space, whole, tmp_path / "copy" / "s", seed)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_thousand_cases(ended, tmp_path):
    space, whole = ended
    for seed in range(40, 2040):
        survives(space, whole, tmp_path / "copy" / "s", seed)


def test_the_journal_is_made_anew(load, tmp_path):
    """A sweep of 40 trials whose journal was lost gave 30 of them another's metrics."""
    space = load(ONE, CONDITIONAL)
    first = Sweep(tmp_path / "s", space, trials=12, overrides=PLAIN)
    drive(first)
    first.close()
    before = rows(tmp_path / "s")
    (tmp_path / "s/.state/study.journal").unlink()
    second = Sweep(tmp_path / "s", space, trials=15, overrides=PLAIN)
    drive(second)
    second.close()
    after = rows(tmp_path / "s")
    assert len(after) == 15
    for number, row in before.items():
        pd.testing.assert_series_equal(pd.Series(after[number]), pd.Series(row))
    assert_study_agrees(tmp_path / "s", space.objectives)


def test_all_of_it_damaged_is_refused_by_name(ended, tmp_path):
    space, whole = ended
    for name in FILES:
        (whole / name).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"trials\.parquet cannot be read.*another --name"):
        Sweep(whole, space, trials=TRIALS, overrides=PLAIN)
