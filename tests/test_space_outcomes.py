"""What spaces may do that Optuna's users do: raise, prune, suggest anything, and come to an end."""

from __future__ import annotations

import json

import pytest
from small_sweep import (
    EPOCHS,
    ONE,
    PLAIN,
    abandon,
    assert_study_agrees,
    drive,
    rows,
    told,
)
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.arguments.resources import require_resources
from raybench.search.cells import EndlessError, cells
from raybench.search.sweep import Sweep

RAISING = """
import optuna

fail = False

def space(trial):
    lr = trial.suggest_float("lr", 0.01, 1.0, log=True)
    if fail and trial.number % 3 == 1:
        raise {raised}
    return replace(base, recipe=replace(base.recipe, lr=lr))
"""
ANYTHING = """
CHOICES = [(1, 2), (3, (4, None)), None, True, False, 0.5, "name"]

def space(trial):
    choice = trial.suggest_categorical("any", CHOICES)
    assert choice in CHOICES and type(choice) in (tuple, type(None), bool, float, str)
    return replace(base, seed=1 + [type(c) for c in CHOICES].index(type(choice)) * (
        2 if choice is False or choice == (3, (4, None)) else 3))
"""
GRID = """
def space(trial):
    model = trial.suggest_categorical("model", ["resnet20", "resnet44"])
    seed = trial.suggest_int("seed", 0, 14, step=2)
    lr = 0.1
    if model == "resnet44":
        lr = trial.suggest_float("lr", 0.1, 0.4, step=0.1)
    recipe = replace(base.recipe, lr=lr)
    return replace(base, model=model, seed=seed, recipe=recipe)
"""
CELLS = 8 + 8 * 4
IGNORED = """
def space(trial):
    trial.suggest_float("unused", 0.0, 1.0)
    return replace(base, seed=trial.suggest_int("seed", 0, 1))
"""


class TestRaising:
    @pytest.mark.parametrize(
        ("raised", "status", "reason"),
        [
            ("ZeroDivisionError('by nought')", "FAILED", "the space raised ZeroDivisionError: by"),
            ("KeyError('x')", "FAILED", "the space raised KeyError: 'x'"),
            ("ValueError('no such model')", "FAILED", "the space raised ValueError: no such model"),
            ("optuna.TrialPruned('too large')", "PRUNED", "the space pruned it: too large"),
        ],
    )
    def test_is_the_outcome_of_that_trial(self, load, tmp_path, raised, status, reason):
        space = load(ONE, RAISING.format(raised=raised))
        contents = [cell.cell_contents for cell in space.sample.__closure__]
        function = next(one for one in contents if "fail" in getattr(one, "__globals__", {}))
        function.__globals__["fail"] = True
        try:
            sweep = Sweep(tmp_path / "s", space, trials=6, overrides=PLAIN, early_stopping=False)
            drive(sweep)
            sweep.close()
        finally:
            function.__globals__["fail"] = False
        found = rows(tmp_path / "s")
        assert [found[n]["status"] for n in range(6)] == ["COMPLETE", status, "COMPLETE"] * 2
        assert found[1]["stop_reason"].startswith(reason)
        assert json.loads(found[1]["params"]).keys() == {"lr"}
        if status == "FAILED":
            trace = (tmp_path / "s" / found[1]["failure"]).read_text()
            assert "raise " in trace
        assert_study_agrees(tmp_path / "s", space.objectives)

    def test_a_space_that_prunes_in_the_dry_run_is_loaded(self, load):
        pruning = RAISING.format(raised="0").replace(
            "    if fail", "    if lr > 0.1: raise optuna.TrialPruned\n    if fail"
        )
        space = load(ONE, pruning)
        assert 0 < len(space.examples) < 64
        with pytest.raises(ValueError, match="pruned each of 64 random trials"):
            load(ONE, pruning.replace("lr > 0.1", "lr > 0"))


class TestAnything:
    def test_is_suggested_and_goes_on_after_a_kill(self, load, tmp_path):
        space = load(ONE, ANYTHING)
        first = Sweep(tmp_path / "s", space, trials=5, overrides=PLAIN)
        drive(first, concurrent=3, reports=2 * EPOCHS)
        running = dict(first.tally.running)
        params = {number: first.store.trials[number]["params"] for number in running}
        assert running
        abandon(first)
        second = Sweep(tmp_path / "s", space, trials=5, overrides=PLAIN)
        drive(second)
        second.close()
        found = rows(tmp_path / "s")
        assert all(row["status"] in ("COMPLETE", "PRUNED") for row in found.values())
        assert {number: found[number]["params"] for number in running} == params
        assert len(told(tmp_path / "s")) == 5


class TestTheEnd:
    def test_of_a_finite_space_is_every_one_of_its_cells(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, GRID), trials=CELLS + 10, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        assert sweep.proposals.exhausted
        assert not sweep.proposals.repeating
        assert sweep.unfinished == 0
        found = rows(tmp_path / "s")
        assert len(found) == len({row["params"] for row in found.values()}) == CELLS
        assert_study_agrees(tmp_path / "s", {"accuracy": "max"})

    def test_of_an_endless_one_is_never_claimed(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, IGNORED), trials=5, overrides=PLAIN)
        drive(sweep)
        sweep.close()
        assert sweep.proposals.repeating
        assert not sweep.proposals.exhausted
        assert len(rows(tmp_path / "s")) == 2

    def test_cells_are_walked_branch_by_branch(self, load):
        found = list(cells(load(ONE, GRID).sample))
        assert len(found) == len({json.dumps(params) for params in found}) == CELLS
        assert {"lr" in params for params in found} == {True, False}
        with pytest.raises(EndlessError):
            list(cells(load(ONE, IGNORED).sample))


def test_trials_at_once_are_a_number() -> None:
    for wanted in (0, -1):
        with pytest.raises(ValueError, match=f"--max-concurrent is {wanted}: 1 or more"):
            require_resources(None, wanted)
    with pytest.raises(ValueError, match="--wait is -1: seconds, 0 or more"):
        require_resources(None, wait_s=-1)
