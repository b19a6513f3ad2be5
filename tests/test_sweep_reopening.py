"""A sweep that is opened again: what goes on, and what is another sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from small_sweep import (
    CONDITIONAL,
    EPOCHS,
    ONE,
    PLAIN,
    TWO,
    abandon,
    assert_study_agrees,
    drive,
    metrics,
    rows,
)
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results.core import FINISHED
from raybench.search.overrides import Overrides
from raybench.search.space import Space
from raybench.search.sweep import Sweep
from raybench.search.task import Task


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
        trial_rows = rows(tmp_path / "s")
        assert len(trial_rows) == 6
        assert all(row["status"] in FINISHED for row in trial_rows.values())
        for number, row in running.items():
            assert trial_rows[number]["params"] == row["params"]
            assert trial_rows[number]["stop_reason"] == "enough of it"
        for number, row in ended.items():
            assert trial_rows[number]["status"] == row["status"]
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
        second.rungs.evidence = 0  # it decides from the first trial on
        resumed = second.ask()
        assert resumed.number == tasks[0].number
        assert not report(second, resumed, 1, 0.1)
        assert not report(second, resumed, 2, 0.1)
        *_, new = (second.ask() for _ in range(3))
        assert report(second, new, 1, 0.1)  # who comes there for the first time is stopped
        second.close()
        epochs = pd.read_parquet(tmp_path / "s" / "epochs")
        assert epochs[epochs["number"] == resumed.number]["epoch"].tolist() == [1, 2]

    def test_a_kill_before_the_row_leaves_what_is_enqueued(self, load, tmp_path, monkeypatch):
        wanted = [{"lr": 0.5, "dense": True}, {"lr": 0.25, "dense": True}]
        space = load(ONE, f"enqueue = {wanted}\n", CONDITIONAL)
        first = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)

        def die(row: object) -> None:
            raise SystemExit

        monkeypatch.setattr(first.store, "put_trial", die)
        with pytest.raises(SystemExit):
            first.ask()
        abandon(first)
        second = Sweep(tmp_path / "s", space, trials=2, overrides=PLAIN)
        drive(second)
        second.close()
        trial_rows = rows(tmp_path / "s")
        assert [json.loads(trial_rows[number]["params"]) for number in (0, 1)] == wanted

    def test_a_kill_between_the_end_and_its_files_leaves_none(self, load, tmp_path):
        first = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=3, overrides=PLAIN)
        drive(first, reports=EPOCHS + 2)
        (running,) = list(first.tally.running)[:1]
        checkpoints = tmp_path / "s/.state/checkpoints"
        ended = next(number for number in range(3) if number not in first.tally.running)
        for number in (ended, running):
            for suffix in ("pt", "pt.previous"):
                (checkpoints / f"{number}.{suffix}").write_bytes(b"state")
        abandon(first)
        Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=3, overrides=PLAIN).close()
        kept = sorted(path.name for path in checkpoints.iterdir())
        assert kept == [f"{running}.pt", f"{running}.pt.previous"]


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
        (tmp_path / "s" / "trials" / "trials.parquet").write_bytes(b"nobody knows")
        with pytest.raises(ValueError, match=r"trials.parquet cannot be read.*another --name"):
            Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=2, overrides=PLAIN)

    def test_the_right_command_still_works_after_a_refusal(self, load, finished):
        with pytest.raises(ValueError, match="--seed") as error:
            Sweep(finished, load(ONE, CONDITIONAL), trials=2, overrides=Overrides(seed=7))
        Sweep(finished, load(ONE, CONDITIONAL), trials=2, overrides=PLAIN).close()
        assert error
