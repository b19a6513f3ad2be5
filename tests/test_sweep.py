"""A sweep's trials: as many as asked, what comes out of them, and the models that stay."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from small_sweep import (
    CONDITIONAL,
    EPOCHS,
    FOUR,
    ONE,
    PLAIN,
    TWO,
    assert_study_agrees,
    drive,
    metrics,
    rows,
    told,
)
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results.front import front
from raybench.results.read import read
from raybench.search import space as spaces
from raybench.search.sweep import Sweep
from raybench.search.task import Task


class TestCounts:
    @pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
    @pytest.mark.parametrize("concurrent", [1, 3])
    def test_a_sweep_runs_as_many_trials_as_asked(self, load, tmp_path, objectives, concurrent):
        space = load(objectives, CONDITIONAL)
        sweep = Sweep(tmp_path / "s", space, trials=14, overrides=PLAIN)
        assert sweep.unfinished == 14
        given = drive(sweep, concurrent=concurrent)
        assert sweep.unfinished == 0
        assert sweep.ask() is None
        sweep.close()

        trial_rows = rows(tmp_path / "s")
        assert sorted(trial_rows) == sorted(task.number for task in given)
        assert len(trial_rows) == len({row["key"] for row in trial_rows.values()}) == 14
        counts = Counter(row["status"] for row in trial_rows.values())
        assert counts["COMPLETE"] >= 1
        assert counts["PRUNED"] >= 1
        assert counts["COMPLETE"] + counts["PRUNED"] == 14
        assert_study_agrees(tmp_path / "s", space.objectives)

    def test_both_branches_of_a_conditional_space_are_rows(self, load, tmp_path):
        space = load(ONE, CONDITIONAL)
        sweep = Sweep(tmp_path / "s", space, trials=8, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        for row in rows(tmp_path / "s").values():
            params = json.loads(row["params"])
            if params["dense"]:
                assert math.isnan(row["prune.final_sparsity"])
            else:
                assert row["prune.final_sparsity"] == params["sparsity"]
        assert {json.loads(r["params"])["dense"] for r in rows(tmp_path / "s").values()} == {
            True,
            False,
        }

    def test_every_report_is_a_row_of_the_epochs(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(TWO, CONDITIONAL), trials=6, overrides=PLAIN)
        given = {task.number: task for task in drive(sweep)}
        sweep.close()
        epochs = pd.read_parquet(tmp_path / "s" / "epochs")
        for number, row in rows(tmp_path / "s").items():
            its_epochs = epochs[epochs["number"] == number]
            assert its_epochs["epoch"].tolist() == list(range(1, int(row["epoch"]) + 1))
            assert row["epoch"] == EPOCHS or row["status"] == "PRUNED"
            last = metrics(given[number], int(row["epoch"]))
            assert {name: row[name] for name in last} == last
            assert its_epochs["accuracy"].iloc[-1] == last["accuracy"]

    @pytest.mark.parametrize("evidence", [0, 5])
    def test_who_is_stopped_before_enough_trials_are_complete(self, load, tmp_path, evidence):
        space = load(ONE, CONDITIONAL)
        sweep = Sweep(tmp_path / "s", space, trials=5, overrides=PLAIN, evidence=evidence)
        drive(sweep, concurrent=1)
        sweep.close()
        states = [row["status"] for row in rows(tmp_path / "s").values()]
        assert ("PRUNED" in states) == (evidence == 0)

    def test_evidence_is_a_number_of_trials(self, load, tmp_path):
        with pytest.raises(ValueError, match="--evidence is -1"):
            Sweep(tmp_path / "s", load(ONE, FOUR), trials=5, overrides=PLAIN, evidence=-1)

    def test_without_early_stopping_nobody_is_stopped(self, load, tmp_path):
        sweep = Sweep(
            tmp_path / "s",
            load(ONE, CONDITIONAL),
            trials=8,
            overrides=PLAIN,
            early_stopping=False,
        )
        drive(sweep)
        sweep.close()
        assert {row["status"] for row in rows(tmp_path / "s").values()} == {"COMPLETE"}

    def test_no_trials_is_refused(self, load, tmp_path):
        with pytest.raises(ValueError, match="--trials is 0"):
            Sweep(tmp_path / "s", load(ONE, FOUR), trials=0, overrides=PLAIN)
        assert not (tmp_path / "s").exists()


class TestOutcomes:
    @pytest.mark.parametrize("value", [math.nan, math.inf, None])
    @pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
    def test_an_objective_that_is_no_number_is_a_failure(self, load, tmp_path, objectives, value):
        def outcome(task: Task, epoch: int) -> dict[str, Any]:
            actual = metrics(task, epoch)
            return actual | {"accuracy": value} if task.number == 1 and epoch == EPOCHS else actual

        space = load(objectives, CONDITIONAL)
        sweep = Sweep(
            tmp_path / "s", space, trials=3, overrides=PLAIN, early_stopping=False, keep="all"
        )
        drive(sweep, outcome=outcome)
        sweep.close()
        row = rows(tmp_path / "s")[1]
        assert row["status"] == "FAILED"
        assert "accuracy" in row["stop_reason"]
        assert math.isnan(row["accuracy"])
        assert_study_agrees(tmp_path / "s", space.objectives)
        results = read(tmp_path / "s")
        assert 1 not in front(results.trials, results.objectives)["number"].tolist()
        assert not list((tmp_path / "s" / "models").glob("s-0001*"))

    def test_a_failure_keeps_its_reason_and_the_sweep_goes_on(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=3, overrides=PLAIN)
        task = sweep.ask()
        sweep.finish(task.number, "FAILED", "diverged")
        drive(sweep)
        sweep.close()
        trial_rows = rows(tmp_path / "s")
        assert (trial_rows[0]["status"], trial_rows[0]["stop_reason"]) == ("FAILED", "diverged")
        assert len(trial_rows) == 3
        assert told(tmp_path / "s")[0].state == TrialState.FAIL
        assert told(tmp_path / "s")[0].user_attrs["stop_reason"] == "diverged"

    def test_notes_become_columns(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=1, overrides=PLAIN)
        task = sweep.ask()
        sweep.note(task.number, cpu="a processor", threads=1)
        sweep.finish(task.number, "FAILED", "out_of_memory")
        sweep.close()
        row = rows(tmp_path / "s")[0]
        assert (row["cpu"], row["threads"]) == ("a processor", 1)

    def test_a_checkpoint_goes_with_its_trial(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=1, overrides=PLAIN)
        task = sweep.ask()
        assert task.checkpoint.is_absolute()
        task.checkpoint.write_bytes(b"state")
        sweep.finish(task.number, "FAILED", "diverged")
        assert not task.checkpoint.exists()
        sweep.close()


class TestModels:
    def stems(self, load, folder: Path, keep: str) -> tuple[set[str], set[str], set[str]]:
        """The trials with a model, those on the front, and those that are complete."""
        sweep = Sweep(folder, load(TWO, CONDITIONAL), trials=10, overrides=PLAIN, keep=keep)
        drive(sweep)
        sweep.close()
        files = sorted(path.name for path in (folder / "models").iterdir())
        stems = {name.split(".")[0] for name in files}
        assert files == sorted(f"{stem}.{end}" for stem in stems for end in ("json", "safetensors"))
        results = read(folder)
        complete = results.trials[results.trials["status"] == "COMPLETE"]["trial"]
        return stems, set(front(results.trials, results.objectives)["trial"]), set(complete)

    def test_keep_best_leaves_the_front(self, load, tmp_path):
        stems, best, complete = self.stems(load, tmp_path / "s", "best")
        assert stems == best
        assert best < complete

    def test_keep_all_leaves_every_complete_one(self, load, tmp_path):
        stems, _, complete = self.stems(load, tmp_path / "s", "all")
        assert stems == complete

    def test_keep_none_leaves_none(self, load, tmp_path):
        assert self.stems(load, tmp_path / "s", "none")[0] == set()

    def test_the_experiment_lies_beside_its_model(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=1, overrides=PLAIN, keep="all")
        (task,) = drive(sweep)
        sweep.close()
        beside = task.model.with_suffix(".json").read_text()
        assert spaces.checked(task.experiment).to_json() == json.dumps(json.loads(beside))


@pytest.mark.parametrize("objectives", [ONE, TWO])
def test_optunas_own_tools_see_names_and_curves(load, tmp_path, objectives):
    sweep = Sweep(tmp_path / "s", load(objectives, CONDITIONAL), trials=3, overrides=PLAIN)
    drive(sweep)
    sweep.close()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s/.state/study.journal")))
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.metric_names == list(sweep.space.objectives)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert list(trial.intermediate_values) == [*range(1, EPOCHS + 1)]
        assert trial.intermediate_values[EPOCHS] == trial.values[0]
