"""The figures of simulated searches, from invented traces."""

from __future__ import annotations

import pytest

from raybench.bench.__main__ import Bench, run
from raybench.bench.search_figures import compared, ratio, share, targets
from raybench.bench.simulated_search import NEVER, Run, Trace

TASKS = [str(number) for number in range(12)]


def done(**finals: float):
    """Traces that reach half of their final hypervolume at a quarter of the budget."""
    return {
        Run(scenario="s", task=task, method=method, seed=seed): Trace(
            (0.25, 1.0), (final / 2 + 0.001 * place, final + 0.001 * place), 2
        )
        for place, task in enumerate(TASKS)
        for method, final in finals.items()
        for seed in range(3)
    }


def test_shares_and_ratios_are_against_the_target():
    of = done(random=0.4, ours=0.8, worse=0.2)
    target = targets(of)
    assert share(of, "ours", target) == 0.25
    assert share(of, "random", target) == 1.0
    assert share(of, "worse", target) == NEVER
    assert ratio(of, "ours", target) == pytest.approx(2.0, rel=0.05)


def test_wins_count_the_peers_that_are_worse_after_the_correction():
    of = done(ours=0.8, one=0.5, other=0.6, better=0.9)
    counted = compared(of, "ours", ["one", "other", "better"])
    assert (counted["wins"], counted["losses"]) == (2, 1)
    assert compared(of, "better", ["ours", "one", "other"])["wins"] == 3


def test_a_scenario_that_is_not_there_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYBENCH_YAHPO", str(tmp_path))
    assert run(Bench(name="search", scenario="lcbench")) == 2
    assert "holds no scenario 'lcbench'" in capsys.readouterr().err
    assert run(Bench(name="step", scenario="lcbench")) == 2
    assert "belongs to the bench search" in capsys.readouterr().err
