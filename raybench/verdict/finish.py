"""The end of a study: times measured alone, the verdict, the recipe's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raybench import data
from raybench.artefact import shipped
from raybench.artefact.latency import Times
from raybench.experiment import Experiment
from raybench.results import verdict_table
from raybench.training import process
from raybench.verdict import alone, outcome, recommended
from raybench.verdict.arms import Run
from raybench.verdict.constraints import Constraint
from raybench.verdict.judgement import Outcome
from raybench.verdict.outcome import Measured
from raybench.verdict.plan import ALONE_S
from raybench.verdict.policy import BASELINE, Arm, seed_runs
from raybench.verdict.recommended import Choice
from raybench.verdict.study import Study

FP32 = ("fp32",)  # added to an arm's name: its network without rounding to int8
LEAST_SEEDS = 2  # an arm with fewer is not measured


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result of a study."""

    verdicts: pd.DataFrame
    choice: Choice
    told: dict[str, Any]
    """Figures of the recommended model from its trial and the measurement."""
    fresh: dict[str, float]
    """The same figures, measured by a fresh process; empty without a recipe."""
    kept: bool
    """Whether the fresh process confirmed the figures and all constraints."""


def finish(
    study: Study,
    folder: Path,
    trial_of: Callable[[int], str],
    constraints: Sequence[Constraint],
    reasons: dict[str, str],
    say: Callable[[str], None],
) -> Finished:
    """Measures the remaining arms alone, judges all arms, and writes the recipe's files.

    Args:
        trial_of: the name of a trial by its number.

    Raises:
        ValueError: the baseline has no model.
    """
    process.prepare(threads=1)
    chosen = study.state().chosen
    if BASELINE not in chosen:
        raise ValueError("the study ended before the baseline was tuned; use a larger --budget")
    remaining = _remaining(study, chosen)
    say(f"measuring {len(remaining)} arms alone, interleaved")
    best = {arm: _best(study, chosen[arm]) for arm in remaining}
    experiments = {arm: study.arms.experiment(run) for arm, (run, _) in best.items()}
    models = {
        arm: folder / "models" / f"{trial_of(study.numbers[run])}.safetensors"
        for arm, (run, _) in best.items()
    }
    measured, graphs = _measured(experiments, models, ALONE_S * len(remaining))
    verdicts = outcome.table(study.design, study.history, measured, reasons)
    never = frozenset(
        outcome.name_of(arm) for arm in measured.slower_in_int8 if study.design.goal == "latency"
    )
    choice = recommended.choose(verdicts, study.design.goal, constraints, never)
    verdict_table.write(verdicts, folder)
    recommended.clear(folder)
    if not choice.meets:
        return Finished(verdicts=verdicts, choice=choice, told={}, fresh={}, kept=False)
    arm: Arm = next(a for a in remaining if outcome.name_of(a) == choice.arm)
    run, result = best[arm]
    told = {
        "arm": choice.arm,
        "trial": trial_of(study.numbers[run]),
        "test_accuracy": result.test_accuracy,
        "model_bytes": result.model_bytes,
        "latency_ms": measured.latency_ms.get(arm),
        **{f"constraint {number}": str(one) for number, one in enumerate(constraints)},
    }
    recommended.write(folder, models[arm], experiments[arm], graphs.get(arm), told)
    say("reading the recommended files in a fresh process")
    fresh = recommended.check(folder)
    test_images = len(data.load(study.arms.base).test)
    kept = _as_told(told, fresh, test_images, verdicts, choice.arm, constraints)
    return Finished(verdicts=verdicts, choice=choice, told=told, fresh=fresh, kept=kept)


def _remaining(study: Study, chosen: dict[Arm, Run]) -> list[Arm]:
    """The baseline, and the arms that the seeds so far have not ruled out."""
    judged, _ = outcome.verdicts(study.design, study.history, Measured())
    return [BASELINE] + [
        arm
        for arm, one in judged.items()
        if one.points.seeds >= LEAST_SEEDS and one.verdict != "does not pay"
    ]


def _best(study: Study, run: Run) -> tuple[Run, Outcome]:
    """The seed with the highest validation accuracy; a tuning run if no seed has ended."""
    seeds = [*seed_runs(run, study.design.most_seeds), run]
    ended = [(one, study.history.get(one)) for one in seeds]
    complete = [(one, result) for one, result in ended if result is not None and result.complete]
    paired = [pair for pair in complete if pair[0].seed] or complete
    return max(paired, key=lambda pair: pair[1].accuracy)


def _measured(
    experiments: dict[Arm, Experiment], models: dict[Arm, Path], limit_s: float
) -> tuple[Measured, dict[Arm, bytes]]:
    images = data.load(experiments[BASELINE])
    ratios: dict[str, dict[Arm, Times]] = {}
    trained = alone.log_ratios(alone.trainings(experiments, limit_s), BASELINE)
    ratios["train_time"] = {arm: logs for arm, logs in trained.items() if np.isfinite(logs).all()}
    graphs: dict[Arm, bytes] = {}
    in_fp32: dict[Arm, bytes] = {}
    without: dict[Arm, str] = {}
    for arm, path in models.items():
        try:
            made = shipped.graphs(path, experiments[arm], images)
        except ValueError as error:
            without[arm] = " ".join(str(error).split())
            continue
        graphs[arm] = made.shipped
        if made.fp32 is not None:
            in_fp32[arm + FP32] = made.fp32
    latency_ms: dict[Arm, float] = {}
    slower: set[Arm] = set()
    if BASELINE in graphs:
        for batch in alone.BATCHES:
            times = alone.latencies({**graphs, **in_fp32}, images.inputs, batch)
            logs = alone.log_ratios(times, BASELINE)
            ratios[f"latency_{batch}"] = {arm: logs[arm] for arm in graphs}
            if batch == 1:
                latency_ms = {arm: float(np.median(times[arm])) for arm in graphs}
                slower = {
                    arm
                    for arm in graphs
                    if arm + FP32 in in_fp32 and np.median(times[arm] / times[arm + FP32]) >= 1
                }
    measured = Measured(
        ratios=ratios,
        latency_ms=latency_ms,
        slower_in_int8=frozenset(slower),
        without_graph=without,
    )
    return measured, graphs


def _as_told(
    told: dict[str, Any],
    fresh: dict[str, float],
    test_images: int,
    verdicts: pd.DataFrame,
    arm: str,
    constraints: Sequence[Constraint],
) -> bool:
    """Whether accuracy (up to one image), bytes and every constraint agree with `told`."""
    same = abs(fresh["test_accuracy"] - told["test_accuracy"]) <= 1.01 / test_images
    same = same and fresh["model_bytes"] == told["model_bytes"]
    figures: dict[str, float | None] = {**recommended.figures_of(verdicts, arm), **fresh}
    return same and all(one.holds(figures) for one in constraints)
