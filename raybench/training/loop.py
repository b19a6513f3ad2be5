"""fit(): the single epoch loop, for every runner. It imports no technique, Ray or table.

train ─▶ whole ─▶ evaluation weights put in ─▶ (last epoch: finish) ─▶ norms recomputed ─▶
(last epoch: stored, read back, scored) ─▶ validated ─▶ measured ─▶ reported

Nothing changes the model between storing and scoring it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raybench.data import Images
from raybench.experiment import Experiment
from raybench.techniques import Memory
from raybench.training import checkpoint, measure, trained
from raybench.training.coverage import fits
from raybench.training.first_model import first_model as first_model
from raybench.training.replicated import Replicated
from raybench.training.runner import Diverged as Diverged
from raybench.training.runner import Metrics, Runner, put_in
from raybench.training.score import bytes_if_finished, renewed, store_and_score, validated

Begin = Callable[[Experiment, Images, "dict[str, Any] | None"], Runner]
"""Makes the runner of an experiment, from the start or from a saved state."""


@dataclass(frozen=True)
class Epoch:
    """The result of an epoch. `save` writes the state for `resume=path`. Call it before asking for
    the next epoch, on all workers or on none: each worker holds a part of the state, and the first
    one writes the whole."""

    number: int
    of: int
    metrics: Metrics
    save: Callable[[Path], None]

    @property
    def last(self) -> bool:
        return self.number == self.of


def fit(
    experiment: Experiment,
    images: Images,
    *,
    resume: Path | None = None,
    store: Path | None = None,
    begin: Begin = Replicated,
) -> Iterator[Epoch]:
    """Trains, yielding once per epoch; closing the generator stops the run.

    The last epoch's metrics include the test scores. The test scores, the model's bytes and its
    sparsity are those of the model as read back from its file: from `store` if given, else from a
    temporary file.

    Raises:
        Diverged: at the first step whose loss is NaN or infinite.
        ValueError: a technique acts on no weight of the model.
    """
    called, begun = time.perf_counter(), time.time()
    images = trained.honest(experiment, images)
    recipe, device, techniques = experiment.recipe, measure.pick_device(), experiment.techniques()
    coverage = fits(experiment, images.classes)
    dtype, _ = measure.pick_dtype(recipe.precision, device)
    metrics: Metrics = {"train_s": 0.0, "eval_s": 0.0, "precision_used": str(dtype)[6:]}
    state, first = None, 1
    if resume is not None:
        state = checkpoint.read(resume, experiment, device)
        first, metrics = state["epoch"] + 1, state["metrics"]
    before = metrics.get("wall_s", 0.0)
    runner = begin(experiment, images, state)
    del state  # the runner has copied what it needs
    try:
        for number in range(first, recipe.epochs + 1):
            epoch_run = runner.epoch(number)
            if number == first:
                metrics["startup_s"] = epoch_run.started - begun
            train_s = metrics["train_s"] + epoch_run.seconds
            metrics |= epoch_run.metrics | coverage
            metrics |= {"train_s": train_s, "s_per_epoch": train_s / number}

            evaluation = measure.Stopwatch(device)
            evaluation.start()
            whole, memories = runner.whole(), runner.memories()
            replaced = put_in(whole, _evaluated(whole, experiment, memories))
            if number == recipe.epochs:
                for name, technique in techniques:
                    technique.finish(whole, memories[name])
            renewed(whole, experiment, images, number)
            if number == recipe.epochs:
                metrics |= store_and_score(whole, experiment, images, runner.replicas, store)
            else:
                metrics["model_bytes"] = bytes_if_finished(whole, experiment, images, memories)
            metrics |= validated(whole, images, runner.replicas)
            for name, technique in techniques:
                metrics |= technique.measure(whole, memories[name])
            if number < recipe.epochs:
                put_in(whole, replaced)
            del whole, memories, replaced  # frees copies before training continues
            evaluation.stop()
            peak = epoch_run.peak_memory_bytes
            metrics |= {
                "eval_s": metrics["eval_s"] + evaluation.seconds,
                "wall_s": before + time.perf_counter() - called,
                "peak_memory_bytes": measure.peak_memory_bytes(device) if peak is None else peak,
            }

            def save(path: Path, epoch: int = number, metrics: Metrics = metrics) -> None:
                header = {"experiment": experiment.to_json(), "epoch": epoch, "metrics": metrics}
                state = header | runner.state()
                if runner.replicas.rank == 0:
                    checkpoint.write(state, path)

            yield Epoch(number, recipe.epochs, dict(metrics), save)
    finally:
        runner.close()


def _evaluated(
    model: nn.Module, experiment: Experiment, memories: dict[str, Memory]
) -> dict[str, Tensor]:
    """Values that replace the trained ones in evaluation; the last technique has priority."""
    values: dict[str, Tensor] = {}
    for name, technique in experiment.techniques():
        values |= technique.evaluated(model, memories[name])
    return values
