"""What a sweep suggests: by its seed, nothing twice, and first what is enqueued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_sweep import (
    CONDITIONAL,
    FOUR,
    ONE,
    PLAIN,
    TWO,
    abandon,
    assert_study_agrees,
    drive,
    journal,
    metrics,
    rows,
)
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search.overrides import Overrides
from raybench.search.sweep import Sweep
from raybench.search.task import Task


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
            actual = metrics(task, epoch)
            return {**actual, "accuracy": 1 - actual["accuracy"]}

        assert suggested("a", "random", metrics) == suggested("b", "random", worse)
        assert suggested("c", "tpe", metrics) != suggested("d", "tpe", worse)

    def test_repeat_no_configuration_and_notice_when_there_is_no_other(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, FOUR), trials=10, overrides=PLAIN)
        drive(sweep)
        assert sweep.proposals.exhausted
        assert sweep.unfinished == 0
        sweep.close()
        trial_rows = rows(tmp_path / "s")
        assert (
            len(trial_rows)
            == len({(row["model"], row["seed"]) for row in trial_rows.values()})
            == 4
        )
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
        actual = [json.loads(row["params"]) for _, row in sorted(rows(tmp_path / "s").items())]
        assert actual[:2] == wanted
        assert len(actual) == 4
        assert not [params for params in actual[2:] if params in wanted]
        assert len(journal(tmp_path / "s")) == 4

    def test_what_enqueue_leaves_open_is_drawn_anew_each_time(self, load, tmp_path):
        space = load(TWO, "enqueue = [{'dense': d} for d in (True, False) * 3]\n", CONDITIONAL)
        sweep = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        assert len({row["recipe.lr"] for row in rows(tmp_path / "s").values()}) == 6
