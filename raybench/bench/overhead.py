"""The engine's overhead: the start of a trial, and a sweep of trials that do nothing."""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median

import optuna
from optuna.storages.journal import JournalFileBackend

from raybench.bench import real_space, trivial_space
from raybench.bench.timed import run
from raybench.cluster.session import session
from raybench.search.overrides import Overrides
from raybench.search.space import Space, load

TRIALS = 200
FIRST = 20  # untimed warm-up trials: the actors start, the sampler leaves its random phase
STARTS = 20

claims = {
    "start_s_1": "at most 0.05",
    "start_s_2": "at most 0.2",
    "per_trial_ms": "at most 15",
}


def measure() -> dict[str, float]:
    """Seconds from a trial's start to its first step; overhead over Optuna in ms per trial."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, session():
        folder = Path(scratch)
        for workers in (1, 2):
            starts = _starts(folder / f"starts{workers}", workers)
            figures[f"start_s_{workers}"] = median(starts)
            figures[f"start_s_{workers}_max"] = max(starts)
        space = load(Path(str(trivial_space.__file__)), Overrides())
        began = time.perf_counter()
        sweep = run(
            folder / "trivial", space, Overrides(), trials=FIRST + TRIALS, workers=1, concurrent=2
        )
        with_start = time.perf_counter() - began
        swept = sweep.ends[-1] - sweep.ends[FIRST - 1]
        ends = _plain_loop(folder / "plain.journal", space)
        plain = ends[-1] - ends[FIRST - 1]
    return figures | {
        "per_trial_ms": 1000 * (swept - plain) / TRIALS,
        "sweep_s": swept,
        "plain_loop_s": plain,
        "sweep_with_actor_start_s": with_start,
        "trials": TRIALS,
    }


def _starts(folder: Path, workers: int) -> list[float]:
    """Seconds from suggestion to first step, for warm trials that run one at a time."""
    overrides = Overrides(workers=workers)
    space = load(Path(str(real_space.__file__)), overrides)
    sweep = run(folder, space, overrides, trials=STARTS, workers=workers, concurrent=1)
    rows = [sweep.store.trials[number] for number in sorted(sweep.store.trials)]
    # The first trials start the workers, open the images and choose kernels.
    return [float(row["queue_s"]) + float(row["startup_s"]) for row in rows[2:]]


def _plain_loop(journal: Path, space: Space) -> list[float]:
    """End times of the trials in a plain Optuna loop with the same study, sampler and space."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    ends = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True)
        study = optuna.create_study(storage=storage, sampler=sampler, direction="maximize")
        for _ in range(FIRST + TRIALS):
            trial = study.ask()
            experiment = replace(space.sample(trial), seed=0)
            accuracy = int(experiment.key(), 16) / 16**16
            trial.report(accuracy, 1)
            study.tell(trial, accuracy)
            ends.append(time.perf_counter())
    return ends
