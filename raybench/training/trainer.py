"""The trainer of an experiment: its family's own, or the common one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raybench import data
from raybench.artefact.shipped import shipped_latency
from raybench.experiment import Experiment, compatible, preset
from raybench.models import build, outline
from raybench.models.blocks import blocks
from raybench.models.check import check as check_model
from raybench.parallel import memory, traffic
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.parallel.ddp import Replicas
from raybench.parallel.pipeline import balance
from raybench.training import coverage, measure
from raybench.training.loop import Epoch, fit
from raybench.training.replicated import Replicated
from raybench.training.staged import Alone, MakeStages
from raybench.training.staged_runner import StagedRunner

Train = Callable[..., Iterator[Epoch]]
"""`train(experiment, *, resume=None, store=None)`, a generator of epochs."""

COUNTED = (*memory.HELD, "activations_bytes")


def trainer(experiment: Experiment, stages: MakeStages = Alone) -> Train:
    """The `train` of the family's module, else the `train` below.

    Args:
        stages: starts the stages if a pipeline has several, as `cluster.stages.Staged` does.
    """
    of_family: Train | None = getattr(preset.load(experiment.family), "train", None)
    return of_family or partial(train, stages=stages)


def train(
    experiment: Experiment,
    *,
    resume: Path | None = None,
    store: Path | None = None,
    stages: MakeStages = Alone,
) -> Iterator[Epoch]:
    """One run of any experiment; its metrics include theoretical and measured costs.

    Raises:
        ValueError: parts of it cannot be combined, or do not fit the model or the machine.
        Diverged: at the first step whose loss is not finite.
    """
    compatible(experiment)
    images = data.load(experiment)
    check_model(experiment.model, classes=images.classes, image_size=experiment.image_size)
    known = _beforehand(experiment, images.classes)
    make = stages if experiment.pipeline.stages > 1 else Alone
    begin = partial(StagedRunner, make=make) if experiment.pipeline.on else Replicated
    with tempfile.TemporaryDirectory() as folder:
        path = store or Path(folder) / "model.safetensors"
        for epoch in fit(experiment, images, resume=resume, store=path, begin=begin):
            metrics = known | epoch.metrics
            metrics["s_per_batch"] = epoch.metrics["s_per_epoch"] / (
                len(images.train) // experiment.recipe.batch
            )
            if all(name in metrics for name in COUNTED):
                metrics["memory_bytes"] = sum(metrics[name] for name in COUNTED)
            # Too expensive for every epoch; only the first worker has the file.
            if experiment.latency and epoch.last and Replicas().rank == 0:
                metrics |= shipped_latency(path, experiment, images)
            yield replace(epoch, metrics=metrics)


def check(experiment: Experiment) -> None:
    """Checks everything that is known before training: the data's classes, the model's form.

    Raises:
        ValueError: the family refuses it, a technique fits no layer, or the model cannot be cut.
    """
    preset.check(experiment)
    if hasattr(preset.load(experiment.family), "train"):
        return
    classes = data.load(experiment).classes
    coverage.fits(experiment, classes)
    if experiment.parallel.checkpointing and not experiment.pipeline.on:
        checkpoint_blocks(
            outline(experiment.model, classes=classes, image_size=experiment.image_size)
        )
    pipeline = experiment.pipeline
    if pipeline.on:
        model = build(experiment.model, classes=classes, image_size=experiment.image_size)
        if pipeline.cuts:
            balance.from_text(pipeline.cuts, len(blocks(model)), pipeline.stages)
        else:
            balance.check(len(blocks(model)), pipeline.stages)


def _beforehand(experiment: Experiment, classes: int) -> dict[str, Any]:
    """Columns that are known before training: theory, and the plain model's own file."""
    plain = build(experiment.model, classes=classes, image_size=experiment.image_size)
    saved = measure.torch_save_bytes(plain)
    sizes = outline(experiment.model, classes=classes, image_size=experiment.image_size)
    theory: dict[str, Any] = {"torch_save_bytes": saved, "first_weights": _first(experiment)}
    if not experiment.pipeline.on:
        theory |= {f"theory_{n}": value for n, value in memory.theory(sizes, experiment).items()}
        theory["theory_sent_bytes"] = traffic.theory(sizes, experiment)
    return {name: value for name, value in theory.items() if value is not None}


def _first(experiment: Experiment) -> str:
    if experiment.start_from.startswith("timm:"):
        return "pretrained"
    return "a trained model's" if experiment.start_from else "fresh"
