"""A budget in seconds: what counts, when it ends a search, and that cheap trials come first."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import EPOCHS, ONE, curve, decisions, suggest
from small_sweep import CONDITIONAL, PLAIN, drive, metrics
from small_sweep import ONE as ONE_OBJECTIVE
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search.progress import left
from raybench.search.simulation.curves import Curve
from raybench.search.simulation.memory_sweep import MemorySweep
from raybench.search.simulation.slots import simulate
from raybench.search.spending import Spending
from raybench.search.sweep import Sweep


def epoch(number: int, at: int, seconds: float):
    return ("epoch", 0.0, {"number": number, "epoch": at, "train_s": seconds})


def test_what_is_trained_again_counts_once():
    spending = Spending(10.0)
    for at, seconds in ((1, 2.0), (2, 4.0), (1, 2.0), (2, 4.5)):
        spending.take(epoch(0, at, seconds))
    spending.take(("trial", 0.0, {"number": 0, "status": "PRUNED"}))
    spending.take(epoch(1, 1, 5.0))
    assert spending.spent_s == pytest.approx(9.5)
    assert not spending.over
    spending.take(epoch(1, 2, 5.6))
    assert spending.over


def test_a_sweep_ends_with_its_budget(load, tmp_path):
    space = load(ONE_OBJECTIVE, CONDITIONAL)

    def timed(task, at):
        return {**metrics(task, at), "train_s": 10.0 * at}

    sweep = Sweep(tmp_path / "s", space, trials=10**6, overrides=PLAIN, budget_s=200.0)
    assert "3 min 20 s of the budget to go" in left(sweep)
    drive(sweep, outcome=timed)
    assert sweep.unfinished == 0
    assert 200 <= sweep.decisions.spending.spent_s <= 220
    assert sweep.why_stopped(0) == "the sweep's budget is spent"
    sweep.close()
    again = Sweep(tmp_path / "s", space, trials=10**6, overrides=PLAIN, budget_s=200.0)
    assert again.ask() is None
    again.close()


def test_cheap_trials_come_first_where_nothing_else_decides():
    """All widths are equally good, but a wide network takes up to eight times as long."""

    def equal(params):
        plain = curve({**params, "width": 8, "kind": "plain"})
        seconds = np.full(EPOCHS, 1.0 + params["width"] / 8)
        return Curve(
            {"accuracy": plain.metrics["accuracy"], "train_s": np.cumsum(seconds)}, seconds
        )

    def widths(budget_s: float) -> float:
        sweep = MemorySweep(decisions(ONE, budget_s=budget_s), suggest)
        simulate(sweep, lambda task: equal(task.params), slots=2, budget=30 * EPOCHS)
        suggested = [content for kind, _, content in sweep.records if kind == "suggested"]
        return float(np.mean([one["params"]["width"] for one in suggested[12:]]))

    assert widths(1e9) < 0.6 * widths(float("inf"))
