"""The verdict: false and missed claims in simulated studies, plan and budget in real studies.

A simulated study runs the policy on random outcomes: it adds seeds and tests again as a real one
does. A real study runs the command itself on digits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from raybench.results.read import read
from raybench.verdict.arms import Run
from raybench.verdict.judgement import Goal, Outcome, Verdict
from raybench.verdict.outcome import Measured, verdicts
from raybench.verdict.policy import Arm, Design, state

SPREAD = 0.7
"""Standard deviation of the paired difference in points. Assumed, not measured: the choice of
10,000 test images alone makes two models with 90 % accuracy differ by 0.4."""
ARMS = ("a", "b", "c", "d", "e")
SIMULATED = 1000
REAL = 10
BUDGET_S = 180
STUDY_S = 900  # deadline of a real study
STUDIES = (  # goal, techniques and constraints of the real studies
    ("bytes", "prune,ema", ()),
    ("bytes", "prune,quantize", ("model_bytes < 400000",)),
    ("memory", "checkpointing,prune", ()),
    ("accuracy", "ema,distill", ()),
    ("train_time", "prune,ema", ("accuracy_loss <= 5",)),
)

claims = {
    "false_pays": "at most 0.05",
    "false_pays_within": "at most 0.05",
    "power_more_seeds": "reach 0.8",
    "plan_within_20": "reach 0.8",
    "overrun": "at most 0.02, or an epoch",
    "kept": "reach 0.95 of the studies",
}


def measure() -> dict[str, float]:
    """Shares of simulated and of real studies; see `claims`."""
    figures: dict[str, float] = {
        "false_pays": _share("accuracy", {}, most_seeds=18),
        "false_pays_within": _share("bytes", dict.fromkeys(ARMS, -1.0), most_seeds=18),
        "power": _share("accuracy", {"a": 1.0}, seeds=5, most_seeds=5),
        "power_more_seeds": _share("accuracy", {"a": 1.0}, seeds=5, most_seeds=20),
    }
    with tempfile.TemporaryDirectory() as scratch:
        real = [_real(Path(scratch), number) for number in range(REAL)]
    ratios = [one["spent_s"] / one["expected_s"] for one in real]
    figures |= {
        "plan_within_20": sum(0.8 <= ratio <= 1.2 for ratio in ratios) / REAL,
        "plan_ratio": median(ratios),
        "plan_ratio_min": min(ratios),
        "plan_ratio_max": max(ratios),
        "overrun": max(one["spent_s"] / one["budget_s"] - 1 for one in real),
        "overrun_epochs": max((one["spent_s"] - one["budget_s"]) / one["epoch_s"] for one in real),
        "kept": sum(one["kept"] or not one["meets"] for one in real) / REAL,
        "studies": REAL,
        "simulated": SIMULATED,
    }
    return figures


def _share(goal: Goal, points: Mapping[str, float], seeds: int = 3, most_seeds: int = 12) -> float:
    """The share of simulated studies in which any arm pays, or arm "a" if it has a true gain."""
    claimed = 0
    for number in range(SIMULATED):
        judged = simulated(goal, points, seeds, most_seeds, np.random.default_rng(number))
        wanted = [("a",)] if points.get("a", 0.0) > 0 else [*judged]
        claimed += any(judged.get(arm) == "pays" for arm in wanted)
    return claimed / SIMULATED


def simulated(
    goal: Goal,
    points: Mapping[str, float],
    seeds: int,
    most_seeds: int,
    draw: np.random.Generator,
) -> dict[Arm, Verdict]:
    """The verdicts of a study in which the true differences from the baseline are `points`."""
    design = Design(
        settings=dict.fromkeys(ARMS, 1),
        together=frozenset(map(frozenset, combinations(ARMS, 2))),
        epochs=8,
        goal=goal,
        seeds=seeds,
        most_seeds=most_seeds,
        combinations=0,
        equal_time=False,
    )
    history: dict[Run, Outcome | None] = {}
    while runs := state(design, history).wanted:
        for run in runs:
            mean = 80.0 + sum(points.get(name, 0.0) for name in run.arm)
            noise = draw.normal(0, SPREAD / 2**0.5, size=2)
            history[run] = Outcome(
                complete=True,
                accuracy=(mean + noise[0]) / 100,
                test_accuracy=(mean + noise[1]) / 100,
                model_bytes=1e6 / (1 + len(run.arm)),
                memory_bytes=1e9,
                s_per_epoch=1.0,
                wall_s=8.0,
            )
    judged, _ = verdicts(design, history, Measured())
    return {arm: one.verdict for arm, one in judged.items()}


def _real(scratch: Path, number: int) -> dict[str, Any]:
    """The record that a study on digits writes, with the seconds that the whole command took."""
    goal, techniques, constraints = STUDIES[number % len(STUDIES)]
    name = f"study{number}"
    command = [sys.executable, "-m", "raybench.compare", "--model", "resnet20", "--goal", goal]
    command += ["--techniques", techniques, "--budget", f"{BUDGET_S}s", "--epochs", "2"]
    command += ["--subset", "0.5", "--results", str(scratch), "--name", name]
    command += ["--constraint", *constraints] if constraints else []
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=STUDY_S)
    took = time.monotonic() - began
    verdict = scratch / name / "verdict.json"
    if done.returncode not in (0, 1) or not verdict.exists():
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(verdict.read_text())
    trials = len(read(scratch / name).trials)
    expected = f"{took:.0f} s, expected {record['expected_s']:.0f}"
    expected += f"; {trials} trials, expected {record['expected_trials']}"
    print(f"raybench.bench: {name} ({goal}): {expected}", file=sys.stderr, flush=True)
    return {**record, "spent_s": took}
