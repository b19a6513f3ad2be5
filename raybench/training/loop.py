"""fit(): the one training loop. It names no technique, no Ray, no table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench import artefact, parallel
from raybench.data import Images, batches
from raybench.experiment import Experiment
from raybench.models import avoid_slow_bf16, build, require_source
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.techniques import Batch, Memory, Progress
from raybench.training import checkpoint, measure, meter, trained
from raybench.training.loss_scale import LossScale
from raybench.training.optim import learning_rate
from raybench.training.score import bytes_if_finished, renewed, store_and_score, validated

Metrics = dict[str, Any]


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


LOOK_EVERY = 50  # steps between two looks at the loss on a GPU


class Diverged(ArithmeticError):
    """The loss is not a number any more."""


def fit(
    experiment: Experiment, images: Images, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """Trains, yielding once per epoch; closing the generator stops the run.

    The last epoch's metrics hold the test scores. They, and the model's bytes and sparsity, are
    of the model as read back from its file: from `store`, where one is given, else from a
    temporary one.

    Raises:
        Diverged: at the first step whose loss is NaN or infinite.
    """
    called = time.perf_counter()
    recipe, device = experiment.recipe, measure.pick_device()
    replicas = parallel.replicas(experiment.parallel)
    watch = meter.Meter(replicas, device)
    dtype, _ = measure.pick_dtype(recipe.precision, device)
    techniques = experiment.techniques()

    images = trained.honest(experiment, images)
    torch.manual_seed(experiment.seed)
    model = first_model(experiment, images.classes)
    # The order is that of the fields in Experiment, here and at every later moment.
    for _, technique in techniques:
        technique.reshape(model)
    # channels_last: 1.1 to 1.6 times faster convolutions on a CPU, harmless elsewhere.
    model.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu" and dtype == torch.bfloat16:
        avoid_slow_bf16(model)
    if experiment.parallel.checkpointing:
        checkpoint_blocks(model)
    load = partial(trained.load, experiment=experiment, classes=images.classes, device=device)
    for _, technique in techniques:
        technique.before_training(model, load)
    steps = len(images.train) // recipe.batch
    progress = Progress(0, steps * recipe.epochs, steps)
    state, first = None, 1
    if resume is not None:
        state = checkpoint.read(resume, experiment, device)
        first = state["epoch"] + 1
        progress = progress._replace(step=(first - 1) * steps)
        # The layers of the epoch that was saved.
        _restructure(model, experiment, progress._replace(step=(first - 2) * steps), {})
    memories: dict[str, Memory] = {name: {} for name, _ in techniques}
    wrapped = replicas.wrap(model)
    optimizer = replicas.optimizer(wrapped, recipe)
    scaled = LossScale(dtype, replicas)
    metrics: Metrics = {"train_s": 0.0, "eval_s": 0.0, "precision_used": str(dtype)[6:]}
    if state is not None:
        replicas.load(model, optimizer, state)
        memories, metrics = state["memories"], state["metrics"]
        scaled.state = state["loss_scale"]
    before = metrics.get("wall_s", 0.0)
    started = False

    for number in range(first, recipe.epochs + 1):
        # Reseeded every epoch, so that a resumed run draws the same dropout masks.
        torch.manual_seed(experiment.seed * 1_000_003 + number * 1009 + replicas.rank)
        if _restructure(model, experiment, progress, memories):
            del wrapped  # with it go DDP's hooks on the parameters that stay
            wrapped = replicas.wrap(model)
            optimizer = replicas.optimizer(wrapped, recipe, continuing=optimizer)
        wrapped.train()
        clock, evaluation = measure.Stopwatch(device), measure.Stopwatch(device)
        losses = torch.zeros((), device=device)
        watch.epoch(steps, recipe.batch)
        clock.start()
        for x, y in batches(
            images,
            recipe,
            seed=experiment.seed,
            epoch=number,
            rank=replicas.rank,
            workers=replicas.workers,
            device=device,
        ):
            if not started:
                metrics["startup_s"] = time.perf_counter() - called
                started = True
            rate = learning_rate(recipe, progress.share)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            # Before the forward pass: its activations then lie where the last gradients were.
            optimizer.zero_grad(set_to_none=True)
            mixed = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
            with watch.forward(x), mixed:
                logits = wrapped(x)
            loss: Tensor = F.cross_entropy(
                logits.float(), y, label_smoothing=recipe.label_smoothing
            )
            for name, technique in techniques:
                loss = loss + technique.penalty(model, Batch(x, y, logits), memories[name])
            scaled.backward(loss)
            scaled.step(optimizer)
            watch.step(model, optimizer)
            progress = progress._replace(step=progress.step + 1)
            for name, technique in techniques:
                technique.after_step(model, progress, memories[name], optimizer)
            losses += loss.detach()
            # Reading the sum back waits for a GPU: there it is done only now and then.
            look = device.type == "cpu" or progress.step % LOOK_EVERY == 0
            if look and replicas.any(not math.isfinite(losses.item())):
                raise Diverged(f"the loss is {losses.item()} at step {progress.step}")
        clock.stop()
        mean_loss = float(replicas.total(losses / steps) / replicas.workers)
        if not math.isfinite(mean_loss):
            raise Diverged(f"the loss is {mean_loss} in epoch {number}")

        replicas.average_buffers(model)
        evaluation.start()
        metrics |= watch.columns | {
            "loss": mean_loss,
            "lr": rate,
            "images_per_s": steps * recipe.batch / clock.seconds,
            "sent_bytes_per_step": round(replicas.sent_bytes_per_step(model, steps)),
        }
        model.eval()  # itself too where the whole is a copy: train() begins the tallies anew
        whole = replicas.whole(model)
        renewed(whole, experiment, images, number)
        if number == recipe.epochs:
            for name, technique in techniques:
                technique.finish(whole, memories[name])
            metrics |= store_and_score(whole, experiment, images, replicas, store)
        else:
            metrics["model_bytes"] = bytes_if_finished(whole, experiment, images, memories)
        metrics |= validated(whole, images, replicas)
        for name, technique in techniques:
            metrics |= technique.measure(whole, memories[name])
        del whole  # where it is a copy, training has the memory
        evaluation.stop()
        metrics |= {
            "train_s": metrics["train_s"] + clock.seconds,
            "s_per_epoch": (metrics["train_s"] + clock.seconds) / number,
            "eval_s": metrics["eval_s"] + evaluation.seconds,
            "wall_s": before + time.perf_counter() - called,
            "peak_memory_bytes": measure.peak_memory_bytes(device),
        }

        def save(
            path: Path,
            epoch: int = number,
            metrics: Metrics = metrics,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> None:
            state = {
                "experiment": experiment.to_json(),
                "epoch": epoch,
                "memories": memories,
                "metrics": metrics,
                "loss_scale": scaled.state,
                **replicas.state(model, optimizer),
            }
            if replicas.rank == 0:
                checkpoint.write(state, path)

        yield Epoch(number, recipe.epochs, dict(metrics), save)


def first_model(experiment: Experiment, classes: int) -> nn.Module:
    """The plain model with its first weights, as `start_from` says. Raises ValueError."""
    name, size, start = experiment.model, experiment.image_size, experiment.start_from
    require_source(experiment)
    if start.startswith("timm:"):
        pretrained = start.removeprefix("timm:")
        if not pretrained:
            raise ValueError("start_from is 'timm:': say timm:hub, or timm:FILE")
        return build(name, classes=classes, image_size=size, pretrained=pretrained)
    model = build(name, classes=classes, image_size=size)
    if start:
        artefact.restore(model, trained.find(start))
    return model


def _restructure(
    model: nn.Module, experiment: Experiment, progress: Progress, memories: dict[str, Memory]
) -> bool:
    """Lets the techniques change layers; whether one did."""
    changed = [
        technique.restructure(model, progress, memories.get(name, {}))
        for name, technique in experiment.techniques()
    ]
    return any(changed)
