"""What a study recommends, what it forecasts, and what it prints."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from raybench.verdict import forecast as forecasts
from raybench.verdict import outcome
from raybench.verdict.arms import Run
from raybench.verdict.constraints import parsed
from raybench.verdict.costs import Cost
from raybench.verdict.forecast import forecast
from raybench.verdict.judgement import Outcome
from raybench.verdict.outcome import Measured
from raybench.verdict.plan import Plan, fitted, table
from raybench.verdict.policy import BASELINE, Design, state
from raybench.verdict.recommended import choose

NAMES = ("prune", "quantize", "ema")
DESIGN = Design(
    settings=dict.fromkeys(NAMES, 1),
    together=frozenset(map(frozenset, combinations(NAMES, 2))),
    epochs=4,
)
COST = Cost(
    startup_s=0.5,
    step_s=0.1,
    evaluation_s=0.2,
    end_s=1.0,
    memory_bytes=1e9,
    counted_bytes=1e8,
    model_bytes=1e6,
)
COSTS = dict.fromkeys(("", *NAMES), COST)


def verdicts() -> pd.DataFrame:
    rows = [
        ("baseline", "baseline", 0.90, 1e6, 2.0, math.nan, math.nan),
        ("prune", "pays", 0.895, 4e5, 2.0, -0.5, 0.4),
        ("quantize", "pays", 0.893, 2e5, 1.0, -0.7, 0.2),
        ("ema", "does not pay", 0.91, 1e6, 2.0, 1.0, 1.0),
    ]
    columns = ["arm", "verdict", "test_accuracy", "model_bytes", "latency_ms", "points"]
    return pd.DataFrame(rows, columns=[*columns, "bytes_ratio"])


def test_what_pays_most_is_recommended():
    assert choose(verdicts(), "bytes", []).arm == "quantize"
    assert choose(verdicts(), "bytes", [], never=frozenset({"quantize"})).arm == "prune"


@pytest.mark.parametrize(
    ("limits", "arm"),
    [
        (["accuracy_loss <= 0.6"], "prune"),
        (["latency_ms <= 1.5"], "quantize"),
        (["test_accuracy >= 0.9"], "baseline"),
    ],
)
def test_constraints_decide_among_what_pays_and_the_baseline(limits, arm):
    choice = choose(verdicts(), "bytes", [parsed(text) for text in limits])
    assert (choice.arm, choice.meets) == (arm, True)


def test_where_nothing_meets_the_constraints_the_nearest_is_named_and_not_recommended():
    choice = choose(verdicts(), "bytes", [parsed("latency_ms <= 0.9"), parsed("model_bytes < 1")])
    assert (choice.arm, choice.meets) == ("quantize", False)
    assert choice.why == "it misses latency_ms <= 0.9, model_bytes < 1"


def test_an_undecided_arm_is_better_than_nothing_that_meets_the_constraints():
    frame = verdicts()
    frame["verdict"] = frame["verdict"].replace("pays", "undecided")
    choice = choose(frame, "bytes", [parsed("model_bytes <= 400000")])
    assert (choice.arm, choice.meets) == ("quantize", True)
    assert choice.why == "it meets the constraints; whether it pays is undecided"


def test_where_nothing_pays_the_baseline_is_the_recipe():
    frame = verdicts()
    frame["verdict"] = frame["verdict"].replace("pays", "undecided")
    choice = choose(frame, "bytes", [])
    assert (choice.arm, choice.why) == ("baseline", "nothing pays for bytes")


def history(design: Design) -> dict[Run, Outcome | None]:
    draw, runs = np.random.default_rng(0), {}
    while wanted := state(design, runs).wanted:
        for run in wanted:
            accuracy = 0.9 + draw.normal(0, 0.001)
            runs[run] = Outcome(
                complete=True,
                accuracy=accuracy,
                test_accuracy=accuracy,
                model_bytes=1e6 / (1 + ("prune" in run.arm)),
                memory_bytes=1e8,
                s_per_epoch=1.0 + 0.6 * ("ema" in run.arm),
                wall_s=1.0,
            )
    return runs


def test_the_table_has_a_row_for_every_arm_and_for_what_does_not_fit():
    runs = history(DESIGN)
    slower = np.log([1.1, 1.12, 1.11, 1.1])
    measured = Measured(
        ratios={"latency_1": {("prune",): slower}},
        latency_ms={BASELINE: 1.0, ("prune",): 1.1},
        slower_in_int8=frozenset({("prune",)}),
    )
    frame = outcome.table(DESIGN, runs, measured, {"switch": "no feed-forward"}).set_index("arm")
    assert list(frame.index) == ["baseline", *NAMES, "switch"]
    assert frame.loc["prune", "verdict"] == "pays"
    assert frame.loc["prune", "bytes_ratio"] == pytest.approx(0.5)
    assert frame.loc["prune", "latency_1_ratio"] == pytest.approx(1.107, abs=0.01)
    assert "slower" in frame.loc["prune", "why"]
    assert frame.loc["switch", "verdict"] == "does not fit"
    assert frame.loc["ema", "equal_time_epochs"] == round(4 / 1.6)
    short = outcome.short_table(frame.reset_index(), "bytes")
    assert list(short.columns) == ["arm", "verdict", "seeds", "points", "bytes"]
    assert short.set_index("arm").loc["prune", "bytes"] == "× 0.50"


def test_a_forecast_runs_what_the_policy_runs(monkeypatch):
    monkeypatch.setattr(forecasts, "EFFECT", (0.0, 0.0))
    seconds = {"": 8.0, **dict.fromkeys(NAMES, 8.0)}
    one = forecast(DESIGN, COSTS, seconds, slots=1, test_images=10_000)
    two = forecast(DESIGN, COSTS, seconds, slots=2, test_images=10_000)
    trials = 4 * (DESIGN.tuning + DESIGN.seeds)  # nothing is smaller: no combinations
    assert one.trials == two.trials == trials
    assert one.trials_s == 8.0 * trials
    assert one.trials_s / 2 <= two.trials_s < 0.7 * one.trials_s
    smaller = {**COSTS, "prune": Cost(**{**vars(COST), "model_bytes": 4e5})}
    also = {**smaller, "quantize": Cost(**{**vars(COST), "model_bytes": 2e5})}
    at_once = replace(DESIGN, most_seeds=DESIGN.seeds)
    more = forecast(at_once, also, seconds, slots=1, test_images=10_000)
    assert more.trials == trials + DESIGN.tuning + DESIGN.seeds  # prune and quantize together


def test_a_forecast_ends_with_the_time():
    seconds = {"": 8.0, **dict.fromkeys(NAMES, 8.0)}
    actual = forecast(DESIGN, COSTS, seconds, slots=2, test_images=300, limit_s=60.0)
    assert 40 < actual.trials_s <= 60


def test_a_plan_is_cut_to_the_budget_and_says_how():
    plan = Plan(DESIGN, COSTS, steps=20, slots=2, test_images=1000)
    assert fitted(plan, None) == plan
    cut = fitted(plan, plan.needed_s - 1)
    assert cut.design.tuning == DESIGN.tuning - 1
    assert cut.remarks == ("tuning is cut to 3 trials per arm, to fit the budget",)
    dear = {**COSTS, "quantize": Cost(**{**vars(COST), "step_s": 0.5})}
    less = fitted(Plan(DESIGN, dear, 20, 2, 1000), 150.0)
    assert less.needed_s <= 150.0
    assert "quantize is left out, to fit the budget" in less.remarks
    with pytest.raises(ValueError, match="too short: the smallest study"):
        fitted(plan, 30.0)


def test_the_plans_parts_sum_up():
    plan = Plan(DESIGN, COSTS, steps=20, slots=2, test_images=1000)
    frame = table(plan, None, price_per_hour=2.0).set_index("part")
    assert frame.loc["in all", "trials"] == frame["trials"][:-1].sum()
    assert frame.loc["in all", "hours"] == pytest.approx(plan.expected_s(None) / 3600, abs=1e-3)
    assert frame.loc["in all", "cost"] == pytest.approx(2 * plan.expected_s(None) / 3600, abs=0.01)
