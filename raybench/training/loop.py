"""fit(): the one epoch loop, whoever takes the steps. It names no technique, no Ray, no table.

train ─▶ whole ─▶ evaluated weights put in ─▶ (last epoch: finish) ─▶ norms renewed ─▶
(last epoch: stored, read back, scored) ─▶ validated ─▶ measured ─▶ reported

Nothing changes the model between its score and its file.
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
"""Makes the runner of an experiment, from its beginning or from a saved state."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. `save` writes the state from which `resume=path` goes on; it is to be
    called before the next epoch is asked for, by all workers or by none: each holds a part of the
    state, of which the first one writes the whole."""

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

    The last epoch's metrics hold the test scores. They, and the model's bytes and sparsity, are
    of the model as read back from its file: from `store`, where one is given, else from a
    temporary one.

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
    del state  # the runner has taken what it needs
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
            del whole, memories, replaced  # where they are copies, training has the memory
            evaluation.stop()
            peak = epoch_run.peak_memory_bytes
            metrics |= {
                "eval_s": metrics["eval_s"] + evaluation.seconds,
                "wall_s": before + time.perf_counter() - called,
                "peak_memory_bytes": measure.peak_memory_bytes(device) if peak is None else peak,
            }

            def save(path: Path, epoch: int = number, metrics: Metrics = metrics) -> None:
                said = {"experiment": experiment.to_json(), "epoch": epoch, "metrics": metrics}
                state = said | runner.state()
                if runner.replicas.rank == 0:
                    checkpoint.write(state, path)

            yield Epoch(number, recipe.epochs, dict(metrics), save)
    finally:
        runner.close()


def _evaluated(
    model: nn.Module, experiment: Experiment, memories: dict[str, Memory]
) -> dict[str, Tensor]:
    """What techniques put in place of the trained values; of several the last one's counts."""
    values: dict[str, Tensor] = {}
    for name, technique in experiment.techniques():
        values |= technique.evaluated(model, memories[name])
    return values
