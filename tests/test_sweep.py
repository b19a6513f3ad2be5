"""The sweep's engine without Ray: a loop that invents metrics asks, reports and finishes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from raybench import space as spaces
from raybench.results import store
from raybench.results.front import front
from raybench.results.read import read
from raybench.space import Overrides, Space
from raybench.sweep import FINISHED, Sweep, Task

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


@pytest.fixture
def _eager_snapshots(monkeypatch):
    """The tables are written anew whenever a trial ends."""
    monkeypatch.setattr(store, "SNAPSHOT_EVERY_S", 0.0)
    monkeypatch.setattr(store, "SNAPSHOT_SHARE", 1e9)


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
    """What training would report: the same for the same experiment and epoch."""
    chance = random.Random(f"{task.experiment.key()} {epoch}")
    return {
        "accuracy": chance.random(),
        "model_bytes": chance.randrange(1000, 2000),
        "loss": chance.random(),
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
    sweep._lock.release()


def assert_study_agrees(folder: Path, objectives: dict[str, str]) -> None:
    states = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED}
    found, study = rows(folder), told(folder)
    assert found.keys() == study.keys()
    for number, row in found.items():
        assert study[number].state == states.get(row["status"], TrialState.FAIL)
        assert study[number].params == json.loads(row["params"])
        if row["status"] == "COMPLETE":
            assert study[number].values == [float(row[name]) for name in objectives]


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

        found = rows(tmp_path / "s")
        assert sorted(found) == sorted(task.number for task in given)
        assert len(found) == len({row["key"] for row in found.values()}) == 14
        counts = Counter(row["status"] for row in found.values())
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
            own = epochs[epochs["number"] == number]
            assert own["epoch"].tolist() == list(range(1, int(row["epoch"]) + 1))
            assert row["epoch"] == EPOCHS or row["status"] == "PRUNED"
            last = metrics(given[number], int(row["epoch"]))
            assert {name: row[name] for name in last} == last
            assert own["accuracy"].iloc[-1] == last["accuracy"]

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


class TestSuggestions:
    def params(self, load, folder: Path, seed: int) -> list[str]:
        overrides = Overrides(seed=seed)
        space = load(TWO, CONDITIONAL, overrides=overrides)
        sweep = Sweep(folder, space, trials=5, overrides=overrides)
        drive(sweep)
        sweep.close()
        return [row["params"] for row in rows(folder).values()]

    def test_are_decided_by_the_seed(self, load, tmp_path):
        one = self.params(load, tmp_path / "a", seed=0)
        assert self.params(load, tmp_path / "b", seed=0) == one
        assert set(self.params(load, tmp_path / "c", seed=1)).isdisjoint(one)

    def test_random_ones_do_not_depend_on_what_came_out(self, load, tmp_path):
        def suggested(folder: str, sampler: str, outcome: Callable[[Task, int], dict[str, Any]]):
            space = load(ONE, CONDITIONAL)
            sweep = Sweep(tmp_path / folder, space, trials=24, overrides=PLAIN, sampler=sampler)
            drive(sweep, outcome=outcome)
            sweep.close()
            return [row["params"] for row in rows(tmp_path / folder).values()]

        def worse(task: Task, epoch: int) -> dict[str, Any]:
            found = metrics(task, epoch)
            return {**found, "accuracy": 1 - found["accuracy"]}

        assert suggested("a", "random", metrics) == suggested("b", "random", worse)
        assert suggested("c", "tpe", metrics) != suggested("d", "tpe", worse)

    def test_repeat_no_configuration_and_notice_when_there_is_no_other(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, FOUR), trials=10, overrides=PLAIN)
        drive(sweep)
        assert sweep.exhausted
        assert sweep.unfinished == 0
        sweep.close()
        found = rows(tmp_path / "s")
        assert len(found) == len({(row["model"], row["seed"]) for row in found.values()}) == 4
        assert_study_agrees(tmp_path / "s", {"accuracy": "max"})

    def test_enqueued_come_first_and_once(self, load, tmp_path):
        wanted = [{"lr": 0.5, "dense": True}, {"lr": 0.25, "dense": False, "sparsity": 0.75}]
        space = load(TWO, f"enqueue = {wanted}\n", CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        drive(first, concurrent=1, reports=1)
        abandon(first)
        second = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        drive(second)
        second.close()
        found = [json.loads(row["params"]) for _, row in sorted(rows(tmp_path / "s").items())]
        assert found[:2] == wanted
        assert len(found) == 4
        assert not [params for params in found[2:] if params in wanted]
        assert len(journal(tmp_path / "s")) == 4

    def test_what_enqueue_leaves_open_is_drawn_anew_each_time(self, load, tmp_path):
        space = load(TWO, "enqueue = [{'dense': d} for d in (True, False) * 3]\n", CONDITIONAL)
        sweep = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        assert len({row["recipe.lr"] for row in rows(tmp_path / "s").values()}) == 6


class TestOutcomes:
    @pytest.mark.parametrize("value", [math.nan, math.inf, None])
    @pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
    def test_an_objective_that_is_no_number_is_a_failure(self, load, tmp_path, objectives, value):
        def outcome(task: Task, epoch: int) -> dict[str, Any]:
            found = metrics(task, epoch)
            return found | {"accuracy": value} if task.number == 1 and epoch == EPOCHS else found

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
        found = rows(tmp_path / "s")
        assert (found[0]["status"], found[0]["stop_reason"]) == ("FAILED", "diverged")
        assert len(found) == 3
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


class TestReopening:
    def test_a_finished_sweep_has_nothing_left(self, load, tmp_path):
        space = load(TWO, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        drive(first)
        first.close()
        again = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        assert again.unfinished == 0
        assert again.ask() is None
        again.close()

    def test_more_trials_extend_it(self, load, tmp_path):
        space = load(TWO, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        drive(first)
        first.close()
        before = pd.read_parquet(tmp_path / "s" / "trials")
        second = Sweep(tmp_path / "s", space, trials=7, overrides=PLAIN)
        assert second.unfinished == 3
        assert len(drive(second)) == 3
        second.close()
        after = pd.read_parquet(tmp_path / "s" / "trials")
        assert len(after) == after["key"].nunique() == 7
        pd.testing.assert_frame_equal(after.iloc[:4], before)
        assert_study_agrees(tmp_path / "s", space.objectives)

    def test_fewer_trials_take_none_away(self, load, tmp_path):
        space = load(TWO, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        drive(first)
        first.close()
        second = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        assert second.unfinished == 0
        second.close()
        assert len(rows(tmp_path / "s")) == 4

    @pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
    def test_running_trials_go_on_under_their_number(self, load, tmp_path, objectives):
        space = load(objectives, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN)
        drive(first, concurrent=3, reports=7)
        running = {n: r for n, r in first.store.trials.items() if r["status"] == "RUNNING"}
        ended = {n: r for n, r in first.store.trials.items() if r["status"] in FINISHED}
        assert running
        abandon(first)

        second = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN)
        resumed = [second.ask() for _ in running]
        assert [task.number for task in resumed] == sorted(running)
        for task in resumed:
            assert task.experiment.key() == running[task.number]["key"]
            assert task.checkpoint.name == f"{task.number}.pt"
            second.finish(task.number, "FAILED", "enough of it")
        drive(second)
        second.close()
        found = rows(tmp_path / "s")
        assert len(found) == 6
        assert all(row["status"] in FINISHED for row in found.values())
        for number, row in running.items():
            assert found[number]["params"] == row["params"]
            assert found[number]["stop_reason"] == "enough of it"
        for number, row in ended.items():
            assert found[number]["status"] == row["status"]
        assert_study_agrees(tmp_path / "s", space.objectives)

    def test_rungs_are_rebuilt_from_the_rows(self, load, tmp_path):
        space = load(ONE, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=8, overrides=PLAIN)
        drive(first, reports=12)
        before = first.rungs._seen
        abandon(first)
        second = Sweep(tmp_path / "s", space, trials=8, overrides=PLAIN)
        second.ask()
        assert second.rungs._seen == before
        assert before
        second.close()

    def test_a_rung_that_was_passed_is_not_asked_again(self, load, tmp_path):
        """A trial goes on from a checkpoint that is older than its last report."""

        def report(sweep: Sweep, task: Task, epoch: int, accuracy: float) -> bool:
            return sweep.report(task.number, epoch, metrics(task, epoch) | {"accuracy": accuracy})

        space = load(ONE, CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        tasks = [first.ask() for _ in range(3)]
        stops = [report(first, task, 1, a) for task, a in zip(tasks, (0.1, 0.8, 0.9), strict=True)]
        assert stops == [False] * 3
        assert not report(first, tasks[0], 2, 0.1)
        abandon(first)

        second = Sweep(tmp_path / "s", space, trials=4, overrides=PLAIN)
        resumed = second.ask()
        assert resumed.number == tasks[0].number
        assert not report(second, resumed, 1, 0.1)
        assert not report(second, resumed, 2, 0.1)
        *_, new = (second.ask() for _ in range(3))
        assert report(second, new, 1, 0.1)  # who comes there for the first time is stopped
        second.close()
        epochs = pd.read_parquet(tmp_path / "s" / "epochs")
        assert epochs[epochs["number"] == resumed.number]["epoch"].tolist() == [1, 2]

    def test_a_lock_left_by_a_kill_is_not_waited_for(self, load, tmp_path, monkeypatch):
        space = load(ONE, CONDITIONAL)
        Sweep(tmp_path / "s", space, trials=1, overrides=PLAIN).close()
        JournalFileSymlinkLock(str(tmp_path / "s/.state/study.journal")).acquire()

        def sleep(seconds: float) -> None:
            raise AssertionError("it waits")

        monkeypatch.setattr(time, "sleep", sleep)
        sweep = Sweep(tmp_path / "s", space, trials=1, overrides=PLAIN)
        assert sweep.ask() is not None
        sweep.close()

    def test_a_duplicate_that_was_cut_off_does_not_end_the_sweep(self, load, tmp_path):
        """Killed after a suggestion was made, and before it was found to be there already."""
        space = load(ONE, FOUR)
        first = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        (task,) = drive(first, concurrent=1, reports=EPOCHS)
        first._study.enqueue_trial(json.loads(first.store.trials[task.number]["params"]))
        space.sample(first._study.ask())
        abandon(first)
        second = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        assert second.unfinished == 1
        assert second.ask() is not None
        second.close()


class TestRefusals:
    @pytest.fixture
    def finished(self, load, tmp_path) -> Path:
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=2, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        return tmp_path / "s"

    def refused(self, folder: Path, space: Space, overrides: Overrides, words: str) -> None:
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match=words):
            Sweep(folder, space, trials=2, overrides=overrides)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (Overrides(epochs=3), r"\(--epochs was None, is 3\)"),
            (Overrides(seed=7), r"\(--seed was 0, is 7\)"),
            (Overrides(workers=2), r"\(--workers was None, is 2\)"),
            (Overrides(data="digits"), r"\(--data was None, is digits\)"),
        ],
    )
    def test_other_settings_are_named(self, load, finished, overrides, words):
        self.refused(finished, load(ONE, CONDITIONAL), overrides, words)

    def test_another_space_is_named(self, load, finished):
        changed = load(ONE, CONDITIONAL.replace("0.9", "0.8"))
        self.refused(finished, changed, PLAIN, r"holds another sweep \(space was probe.py \w+, is")

    def test_other_objectives_are_named(self, load, finished):
        words = r"objectives was .*model_bytes.*--name"
        self.refused(finished, load(TWO, CONDITIONAL), PLAIN, words)

    def test_tables_of_unknown_origin(self, load, tmp_path):
        (tmp_path / "s" / "trials").mkdir(parents=True)
        with pytest.raises(ValueError, match="unknown origin"):
            Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=2, overrides=PLAIN)

    def test_the_right_command_still_works_after_a_refusal(self, load, finished):
        with pytest.raises(ValueError, match="--seed") as error:
            Sweep(finished, load(ONE, CONDITIONAL), trials=2, overrides=Overrides(seed=7))
        Sweep(finished, load(ONE, CONDITIONAL), trials=2, overrides=PLAIN).close()
        assert error


# --- Processes of their own ---------------------------------------------------------------------

fork = multiprocessing.get_context("fork")
DIED = 9


def assert_sound(folder: Path, sweep_trials: int, objectives: dict[str, str]) -> None:
    """Every trial once, ended, and known to the study; every epoch once."""
    found = rows(folder)
    assert len(found) == sweep_trials
    assert len({row["key"] for row in found.values()}) == sweep_trials
    assert all(row["status"] in FINISHED for row in found.values())
    assert_study_agrees(folder, objectives)
    epochs = pd.read_parquet(folder / "epochs")
    assert not epochs.duplicated(["number", "epoch"]).any()
    for number, row in found.items():
        own = epochs[epochs["number"] == number]
        assert own["epoch"].tolist() == list(range(1, int(row["epoch"]) + 1))


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
        found = rows(folder)
        for number, row in before.items():
            assert found[number]["params"] == row["params"]
            assert found[number]["key"] == row["key"]
            if row["status"] in FINISHED:
                assert number not in again
                assert found[number]["status"] == row["status"]
                assert found[number]["accuracy"] == row["accuracy"]
