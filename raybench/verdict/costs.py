"""Costs: the time and memory of a trial of each arm, from one short run of each on this machine.

Each slot's process runs all arms at once, as the trials of the study will: two processes on two
cores are slower than one alone.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from raybench import data
from raybench.experiment import Experiment, from_json
from raybench.training import process
from raybench.training.trainer import train
from raybench.verdict.arms import Arms, Run

STEPS = 8  # in each of the two epochs of a short run
FORWARD = 1 / 3  # of a step: the additional time of a teacher's forward pass
OVERHEAD_S = 0.3  # between two trials of a warm actor


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The costs of one trial."""

    startup_s: float
    step_s: float
    evaluation_s: float
    """Evaluation of each epoch except the last."""
    end_s: float
    """Of the last epoch: stored, read back, scored."""
    memory_bytes: float
    """Peak of the process."""
    counted_bytes: float
    """Parameters, gradients, optimizer state and activations."""
    model_bytes: float

    def seconds(self, epochs: int, steps: int) -> float:
        """Seconds of a trial with this number of steps per epoch."""
        trained = epochs * steps * self.step_s
        return OVERHEAD_S + self.startup_s + trained + (epochs - 1) * self.evaluation_s + self.end_s


def measured(arms: Arms, slots: int) -> dict[str, Cost]:
    """The costs of every technique's arm, and of the baseline under the name "".

    Raises:
        RuntimeError: a short run failed, with its reason.
    """
    jobs = {"": arms.base.to_json()}
    with_teacher = []
    for name, settings in arms.settings.items():
        middle = (name, (len(settings) + 1) // 2)
        experiment = arms.experiment(Run((middle,), 0, arms.base.recipe.epochs, 0))
        if any(technique.loads for _, technique in experiment.techniques()):
            with_teacher.append(name)  # its teacher is not trained yet
        else:
            jobs[name] = experiment.to_json()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(slots, mp_context=context) as pool:
        sides = [pool.submit(_costs, jobs, turn) for turn in range(slots)]
        of_slots = [side.result() for side in sides]
    costs = {name: _mean([one[name] for one in of_slots]) for name in jobs}
    for name in with_teacher:
        costs[name] = replace(costs[""], step_s=(1 + FORWARD) * costs[""].step_s)
    return costs


def steps_of(experiment: Experiment) -> int:
    """Optimizer steps of an epoch."""
    return len(data.load(experiment).train) // experiment.recipe.batch


def short(experiment: Experiment, steps: int, epochs: int) -> Experiment:
    """The same experiment with fewer images, so that an epoch has at most this number of steps."""
    whole = len(data.load(replace(experiment, subset=1.0)).train)
    share = min(experiment.subset, (steps * experiment.recipe.batch + 0.5) / whole)
    return replace(experiment, subset=share, recipe=replace(experiment.recipe, epochs=epochs))


def _costs(jobs: dict[str, str], turn: int) -> dict[str, Cost]:
    """Runs in a separate process; each process starts with a different arm."""
    process.prepare(threads=1)
    names = [*jobs]
    names = names[turn % len(names) :] + names[: turn % len(names)]
    return {name: _cost(short(from_json(jobs[name]), STEPS, 2)) for name in names}


def _cost(experiment: Experiment) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        first, last = (
            epoch.metrics for epoch in train(experiment, store=Path(folder) / "model.safetensors")
        )
    steps = steps_of(experiment)
    return Cost(
        startup_s=first["startup_s"],
        step_s=(last["train_s"] - first["train_s"]) / steps,
        evaluation_s=first["eval_s"],
        end_s=last["eval_s"] - first["eval_s"],
        memory_bytes=last["peak_memory_bytes"],
        counted_bytes=last.get("memory_bytes") or last["peak_memory_bytes"],
        model_bytes=last["model_bytes"],
    )


def _mean(costs: list[Cost]) -> Cost:
    means = {name: fmean(getattr(cost, name) for cost in costs) for name in asdict(costs[0])}
    return Cost(**means)
