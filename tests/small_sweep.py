"""A sweep without Ray for the engine's tests: a loop that invents metrics drives it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raybench.search import space as spaces
from raybench.search.overrides import Overrides
from raybench.search.space import Space
from raybench.search.sweep import Sweep
from raybench.search.task import Task

EPOCHS = 4
HEAD = """
from dataclasses import replace
from raybench.techniques.prune import Prune
from trainers.pruning import base

base = replace(base, recipe=replace(base.recipe, epochs=4))
"""
CONDITIONAL = """
def space(trial):
    recipe = replace(base.recipe, lr=trial.suggest_float("lr", 0.01, 1.0, log=True))
    if trial.suggest_categorical("dense", [True, False]):
        return replace(base, recipe=recipe)
    sparsity = trial.suggest_float("sparsity", 0.3, 0.9)
    return replace(base, recipe=recipe, prune=Prune(final_sparsity=sparsity))
"""
FOUR = """
def space(trial):
    model = trial.suggest_categorical("model", ["resnet20", "resnet44"])
    return replace(base, model=model, seed=trial.suggest_int("seed", 0, 1))
"""
ONE = 'objectives = {"accuracy": "max"}\n'
TWO = 'objectives = {"accuracy": "max", "model_bytes": "min"}\n'
PLAIN = Overrides()


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Nothing here is unplugged, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def load(tmp_path_factory) -> Callable[..., Space]:
    """A checked space from its text; each text is loaded once."""
    folder, known = tmp_path_factory.mktemp("spaces"), {}

    def loaded(*parts: str, overrides: Overrides = PLAIN) -> Space:
        key = ("".join(parts), overrides)
        if key not in known:
            path = folder / "probe.py"
            path.write_text(HEAD + key[0])
            known[key] = spaces.load(path, overrides)
        return known[key]

    return loaded


def metrics(task: Task, epoch: int) -> dict[str, Any]:
    """What training would report: the same for the same experiment and epoch.

    What is good at its end was better than others before.
    """
    key = task.experiment.key()
    of_trial, of_epoch = random.Random(key), random.Random(f"{key} {epoch}")
    learned = epoch / (epoch + 1)
    return {
        "accuracy": learned * (0.9 * of_trial.random() + 0.1 * of_epoch.random()),
        "model_bytes": of_trial.randrange(1000, 2000),
        "loss": of_epoch.random(),
    }


def drive(
    sweep: Sweep,
    *,
    concurrent: int = 2,
    reports: int = 10**9,
    outcome: Callable[[Task, int], dict[str, Any]] = metrics,
) -> list[Task]:
    """Runs the sweep's trials, some at once, until it has no more or so many reports are made."""
    given: list[Task] = []
    running: list[tuple[Task, int]] = []
    more = True
    while reports > 0:
        while more and len(running) < concurrent:
            task = sweep.ask()
            if task is None:
                more = False
            else:
                given.append(task)
                running.append((task, 1))
        if not running:
            break
        task, epoch = running.pop(0)
        stop = sweep.report(task.number, epoch, outcome(task, epoch))
        reports -= 1
        if epoch == EPOCHS:
            task.model.write_bytes(b"weights")
            sweep.finish(task.number, "COMPLETE")
        elif stop:
            sweep.finish(task.number, "PRUNED", f"after epoch {epoch}")
        else:
            running.append((task, epoch + 1))
    return given


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["number"]: row for row in pd.read_parquet(folder / "trials").to_dict("records")}


def journal(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Every trial in the study's journal."""
    storage = optuna.storages.JournalStorage(
        JournalFileBackend(str(folder / ".state/study.journal"))
    )
    return optuna.load_study(study_name=None, storage=storage).trials


def told(folder: Path) -> dict[int, optuna.trial.FrozenTrial]:
    """Those of them that ran or run: without duplicates and what is still to come."""
    return {
        trial.number: trial
        for trial in journal(folder)
        if "duplicate_of" not in trial.user_attrs and trial.state != TrialState.WAITING
    }


def abandon(sweep: Sweep) -> None:
    """What a kill does: the process's lock goes, and nobody closes anything."""
    sweep.store._log.close()
    sweep._lock.release()


def assert_study_agrees(folder: Path, objectives: dict[str, str]) -> None:
    states = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED}
    trial_rows, study = rows(folder), told(folder)
    assert trial_rows.keys() == study.keys()
    for number, row in trial_rows.items():
        assert study[number].state == states.get(row["status"], TrialState.FAIL)
        assert study[number].params == json.loads(row["params"])
        if row["status"] == "COMPLETE":
            assert study[number].values == [float(row[name]) for name in objectives]
