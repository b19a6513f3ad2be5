"""Pipeline: a model in stages on Ray actors, a batch in chunks that follow one another.

Reference: a student project trained MobileNetV2, ResNet-18 and VGG-11 on CIFAR-10 in 1 to 8 chunks
(batch 512, lr 0.2, 100 epochs). With 4 bits between the stages and lr 0.4 it "got nan": a constant
tensor has no range to divide by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from raybench import data
from raybench.data import Images
from raybench.experiment import Experiment, Pipeline, Recipe, compatible
from raybench.models import build
from raybench.models.blocks import blocks
from raybench.parallel.ddp import Replicas
from raybench.parallel.pipeline import balance, schedule
from raybench.parallel.pipeline.stage import State
from raybench.reports.tables.pipeline import table as table  # of the report
from raybench.training import checkpoint, measure, trained
from raybench.training.loop import Epoch, Metrics, fit
from raybench.training.score import bytes_if_finished, renewed, store_and_score, validated
from raybench.training.staged import Alone, Report, Runner, whole_model

base = Experiment(
    family="pipeline",
    model="resnet18",
    recipe=Recipe(epochs=10, batch=512, lr=0.2, weight_decay=1e-4, warmup=0.2),
    pipeline=Pipeline(stages=2, chunks=4),
)
"""The reference's recipe: SGD with momentum, cosine after a warm-up of a fifth of the epochs."""

objectives = {"accuracy": "max", "s_per_batch": "min"}


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """One run: in stages on Ray actors, in chunks in this process, or as `fit` has it.

    Raises:
        ValueError: the model cannot be cut so, or the cluster does not hold the stages.
        Diverged: at the first step whose loss is not finite.
    """
    compatible(experiment)
    images = data.load(experiment)
    if not experiment.pipeline.on:
        for epoch in fit(experiment, images, resume=resume, store=store):
            batch_s = experiment.recipe.batch / epoch.metrics["images_per_s"]
            yield replace(epoch, metrics={"s_per_batch": batch_s} | epoch.metrics)
        return
    yield from _staged(experiment, trained.honest(experiment, images), resume, store)


def check(experiment: Experiment) -> None:
    """Raises ValueError where the model cannot be cut as the experiment says."""
    pipeline = experiment.pipeline
    if pipeline.on:
        model = build(experiment.model, classes=10, image_size=experiment.image_size)
        if pipeline.cuts:
            balance.from_text(pipeline.cuts, len(blocks(model)), pipeline.stages)
        else:
            balance.check(len(blocks(model)), pipeline.stages)


def _staged(
    experiment: Experiment, images: Images, resume: Path | None, store: Path | None
) -> Iterator[Epoch]:
    called, device = time.perf_counter(), measure.pick_device()
    recipe = experiment.recipe
    dtype, _ = measure.pick_dtype(recipe.precision, device)
    metrics: Metrics = {"train_s": 0.0, "eval_s": 0.0, "precision_used": str(dtype)[6:]}
    first, begun, state = 1, time.time(), None
    if resume is not None:
        saved = checkpoint.read(resume, experiment, device)
        state = {part: saved[part] for part in ("model", "optimizer")}
        first, metrics = saved["epoch"] + 1, saved["metrics"]
    before, replicas = metrics.get("wall_s", 0.0), Replicas()
    whole = whole_model(experiment, images.classes, device)
    runner = _runner(experiment, images, state)
    try:
        for number in range(first, recipe.epochs + 1):
            reports = runner.epoch(number)
            if number == first:
                metrics["startup_s"] = max(report.first_step for report in reports) - begun
            metrics |= _of_training(experiment, images, reports, metrics["train_s"], number)
            metrics |= {"restarts": runner.restarts, "cuts": ",".join(map(str, runner.cuts))}
            evaluation = measure.Stopwatch(device)
            evaluation.start()
            state = runner.state()
            whole.load_state_dict(state["model"])
            whole.eval()
            renewed(whole, experiment, images, number)
            if number == recipe.epochs:
                metrics |= store_and_score(whole, experiment, images, replicas, store)
            else:
                metrics["model_bytes"] = bytes_if_finished(whole, experiment, images, {})
            metrics |= validated(whole, images, replicas)
            evaluation.stop()
            metrics |= {
                "eval_s": metrics["eval_s"] + evaluation.seconds,
                "wall_s": before + time.perf_counter() - called,
            }

            def save(
                path: Path, epoch: int = number, metrics: Metrics = metrics, state: State = state
            ) -> None:
                said = {"experiment": experiment.to_json(), "epoch": epoch, "metrics": metrics}
                checkpoint.write({**said, **state}, path)

            yield Epoch(number, recipe.epochs, dict(metrics), save)
    finally:
        runner.close()


def _runner(experiment: Experiment, images: Images, state: State | None) -> Runner:
    """Who trains: this process, or actors."""
    if experiment.pipeline.stages == 1:
        return Alone(experiment, images, state)
    # Imported here: a run in one process does without Ray.
    from raybench.cluster.stages import Staged

    return Staged(experiment, images, state)


def _of_training(
    experiment: Experiment, images: Images, reports: list[Report], trained_s: float, number: int
) -> Metrics:
    """The metrics that an epoch's reports give, one of each stage."""
    recipe, pipeline = experiment.recipe, experiment.pipeline
    steps, stages = len(images.train) // recipe.batch, len(reports)
    seconds = max(report.wall_s for report in reports)
    busy = [report.busy_s for report in reports]
    sent = sum(report.sent_bytes for report in reports) / steps
    seen = {
        name: sum(report.tensors.get(name, 0) for report in reports)
        for name in ("values", "zero_range_tiles", "nonfinite_tensors", "clipped")
    }
    return {
        "loss": reports[-1].loss,
        "lr": reports[0].lr,
        "images_per_s": steps * recipe.batch / seconds,
        "train_s": trained_s + seconds,
        "s_per_epoch": (trained_s + seconds) / number,
        "s_per_batch": (trained_s + seconds) / number / steps,
        "sent_bytes_per_step": round(sent / stages),
        "wire_bytes_per_step": round(sent),
        "bubble_predicted": schedule.bubble(pipeline.schedule, stages, pipeline.chunks),
        "bubble": max(0.0, 1 - sum(busy) / (stages * seconds)),
        "imbalance": balance.imbalance(busy),
        "zero_range_tiles": seen["zero_range_tiles"],
        "nonfinite_tensors": seen["nonfinite_tensors"],
        "clipped_share": seen["clipped"] / max(1, seen["values"]),
        "peak_memory_bytes": max(report.peak_memory_bytes for report in reports),
    }
