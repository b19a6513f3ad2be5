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
from raybench.training import checkpoint, measure, meter
from raybench.training.coverage import fits
from raybench.training.first_model import first_model as first_model
from raybench.training.replicated import Replicated
from raybench.training.runner import Diverged as Diverged
from raybench.training.runner import Metrics, Runner, put_in
from raybench.training.score import bytes_if_finished, renewed, store_and_score, validated

Begin = Callable[[Experiment, Images, "dict[str, Any] | None"], Runner]
"""Makes the runner of an experiment, from its beginning or from a saved state."""

METRICS: dict[str, type] = {
    "loss": float,  # training loss, mean over the epoch
    "validation_loss": float,
    "accuracy": float,  # share of the validation images that is classified rightly
    "test_accuracy": float,  # scored once, at the end, by the model read back from its file
    "test_loss": float,
    "model_bytes": int,  # of the stored file; before the end, of the file it would be (`finish`)
    "parameters": int,
    "flops": int,  # of one image's forward pass, a multiply-add being two
    "lr": float,  # at the end of the epoch
    "images_per_s": float,  # in training, over all workers
    "s_per_epoch": float,  # of training alone, mean over the epochs so far
    "inference_s": float,  # of one pass over the validation images, in fp32
    "train_s": float,  # training alone, summed over the epochs so far
    "eval_s": float,
    "startup_s": float,  # from the call to the first training step
    "wall_s": float,
    "peak_memory_bytes": int,
    "sent_bytes_per_step": int,  # by one worker, mean: gradients in theory, experts' rows counted
    "precision_used": str,
    "s_per_batch": float,  # of training, mean over the epochs so far
    "torch_save_bytes": int,  # of the plain network in fp32, in torch's own format
    "first_weights": str,  # fresh, pretrained, or a trained model's
    "latency_ms": float,  # of one image, by the finished model
    "memory_bytes": int,  # of a worker, all kinds together
    "theory_parameters_bytes": int,
    "theory_gradients_bytes": int,
    "theory_optimizer_bytes": int,
    "theory_buffers_bytes": int,
    "theory_activations_bytes": int,  # known for ViTs in fp32 alone
    "theory_sent_bytes": int,  # of a step
    # Of stages, null where there are none:
    "bubble_predicted": float,  # idle share, were all stages equally fast and hops free
    "bubble": float,  # of the last epoch: 1 - busy seconds of all stages / (stages x its seconds)
    "imbalance": float,  # the busiest stage over the mean
    "wire_bytes_per_step": int,  # over all boundaries, both ways
    "zero_range_tiles": int,  # tiles of equal values, in the epoch; there are none at 32 bits
    "nonfinite_tensors": int,  # such a tensor never travels: it ends the run as diverged
    "clipped_share": float,  # values beyond what a tile's scale can say
    "restarts": int,  # of stages that died
    "cuts": str,  # first block of every stage but the first
} | meter.COLUMNS
"""Columns that every family reports, with their types."""


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
            trained = runner.epoch(number)
            if number == first:
                metrics["startup_s"] = trained.started - begun
            train_s = metrics["train_s"] + trained.seconds
            metrics |= trained.metrics | coverage
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
            peak = trained.peak_memory_bytes
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
