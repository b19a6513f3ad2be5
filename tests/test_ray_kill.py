"""The driver is killed with SIGKILL at random moments, again and again; nothing may be lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray_head import Head, head

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

KILLS = 20
TRIALS = 400
DEADLINE_S = 180.0  # for a driver to make progress, or to end

SPACE = '''
"""Trials of three epochs that do nothing, in a conditional space."""
from raybench.experiment import Experiment, Recipe

objectives = {"accuracy": "max"}


def space(trial):
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    momentum = trial.suggest_float("momentum", 0.5, 0.99) if optimizer == "sgd" else 0.9
    lr = trial.suggest_float("lr", 0.001, 1.0, log=True)
    recipe = Recipe(epochs=3, optimizer=optimizer, momentum=momentum, lr=lr)
    return Experiment(family="raybench.bench.trivial", model="resnet20", recipe=recipe)
'''


def start(node: Head, scratch: Path, trials: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raybench.tune", "--space", str(scratch / "space.py")]
    command += ["--trials", str(trials), "--results", str(scratch / "results")]
    environment = {**node.environment, "RAY_ADDRESS": node.address}
    with (scratch / "driver.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finished(folder: Path) -> pd.DataFrame:
    """The trials that have ended, as a user's pandas sees them."""
    trials = pd.read_parquet(folder / "trials", dtype_backend="numpy_nullable")
    pd.read_parquet(folder / "epochs")
    return trials[trials["status"] != "RUNNING"].set_index("number").sort_index()


def wait_for_progress(process: subprocess.Popen[bytes], folder: Path, before: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        assert process.poll() is None, "the driver ended by itself"
        if (folder / "trials" / "trials.parquet").exists() and len(finished(folder)) > before:
            return
        time.sleep(0.02)
    raise AssertionError("the driver made no progress")


def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    folder = tmp_path / "results" / "space"
    moments = random.Random(0)
    with head(dashboard=False) as node:
        kept: pd.DataFrame | None = None
        for kill in range(KILLS):
            driver = start(node, tmp_path, TRIALS)
            if kill % 5 == 4:  # while it starts: study and rows are being opened, or not even that
                time.sleep(moments.uniform(1.0, 5.0))
            else:
                wait_for_progress(driver, folder, 0 if kept is None else len(kept))
                time.sleep(moments.uniform(0.0, 0.8))
            driver.send_signal(signal.SIGKILL)
            driver.wait(DEADLINE_S)
            now = finished(folder)
            if kept is not None:
                pd.testing.assert_frame_equal(now.loc[kept.index], kept)  # nothing lost or changed
            kept = now
            assert not pd.read_parquet(folder / "trials")["key"].duplicated().any()
        assert start(node, tmp_path, TRIALS).wait(DEADLINE_S) == 0, (
            tmp_path / "driver.log"
        ).read_text()[-2000:]
        assert start(node, tmp_path, TRIALS + 10).wait(DEADLINE_S) == 0  # and it can be extended

    trials = finished(folder)
    pd.testing.assert_frame_equal(trials.loc[kept.index], kept)
    assert len(trials) == TRIALS + 10
    assert trials["key"].is_unique
    assert trials["params"].is_unique
    epochs = pd.read_parquet(folder / "epochs")
    assert not epochs.duplicated(["number", "epoch"]).any()
    assert epochs.groupby("number")["epoch"].max().to_dict() == trials["epoch"].to_dict()
    assert_study_agrees(folder, trials)


def assert_study_agrees(folder: Path, trials: pd.DataFrame) -> None:
    """Optuna and the rows tell the same of every trial; none is left running."""
    states = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED}
    storage = optuna.storages.JournalStorage(
        JournalFileBackend(str(folder / ".state" / "study.journal"))
    )
    study = optuna.load_study(study_name="space", storage=storage)
    told = {trial.number: trial for trial in study.trials}
    assert not [t for t in told.values() if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    for number, row in trials.iterrows():
        assert told[number].state == states[row["status"]]
        assert told[number].params == json.loads(row["params"])
        if row["status"] == "COMPLETE":
            assert told[number].values == [row["accuracy"]]
