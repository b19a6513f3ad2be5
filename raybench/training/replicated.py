"""The runner of whole steps: a single process, or one of a group of workers.

A step: forward ─▶ penalties ─▶ backward ─▶ the optimizers' steps ─▶ after_step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench import parallel
from raybench.data import Images, batches
from raybench.experiment import Experiment
from raybench.hardware import energy, gpu
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.techniques import Batch, Memory, Progress
from raybench.training import kernels, measure, meter, trained
from raybench.training.first_model import laid_out
from raybench.training.loss_scale import LossScale
from raybench.training.optim import learning_rate
from raybench.training.optimizers import Optimizers
from raybench.training.runner import LOOK_EVERY, Diverged, Trained


class Replicated:
    """Every worker holds the model, or its part of it, and takes its part of every batch.

    Args:
        state: for a resumed run, the `state()` and the `epoch` that had ended.
    """

    def __init__(
        self, experiment: Experiment, images: Images, state: dict[str, Any] | None = None
    ) -> None:
        self.experiment, self.images = experiment, images
        recipe, self.device = experiment.recipe, measure.pick_device()
        self.replicas = parallel.replicas(experiment.parallel)
        self._watch = meter.Meter(self.replicas, self.device)
        self._dtype, _ = measure.pick_dtype(recipe.precision, self.device)
        self._techniques = experiment.techniques()
        self._model = model = laid_out(experiment, images.classes, self.device)
        if experiment.parallel.checkpointing:
            checkpoint_blocks(model)
        load = partial(
            trained.load, experiment=experiment, classes=images.classes, device=self.device
        )
        for _, technique in self._techniques:
            technique.before_training(model, load)
        self._steps = len(images.train) // recipe.batch
        self._memories: dict[str, Memory] = {name: {} for name, _ in self._techniques}
        self._progress = Progress(0, self._steps * recipe.epochs, self._steps)
        if state is not None:
            done = state["epoch"]
            # Restore the layers of the saved epoch.
            self._progress = self._progress._replace(step=(done - 1) * self._steps)
            self._restructure({})
            self._progress = self._progress._replace(step=done * self._steps)
        self._wrapped = self.replicas.wrap(model)
        self._forward: Callable[..., Any] | None = None  # compiled by the first epoch
        self._compile_s = 0.0
        self._optimizers = Optimizers(model, self._wrapped, experiment, self.replicas)
        self._scaled = LossScale(self._dtype, self.replicas)
        if state is not None:
            self._optimizers.load(model, state)
            self._memories = {
                name: self.replicas.part_memory(model, memory)
                for name, memory in state["memories"].items()
            }
            self._scaled.state = state["loss_scale"]

    def epoch(self, number: int) -> Trained:
        recipe, replicas = self.experiment.recipe, self.replicas
        # Reseeded every epoch, so that a resumed run draws the same dropout masks.
        torch.manual_seed(self.experiment.seed * 1_000_003 + number * 1009 + replicas.rank)
        if self._restructure(self._memories):
            self._forward = None
            del self._wrapped  # this removes DDP's hooks on the remaining parameters
            self._wrapped = replicas.wrap(self._model)
            self._optimizers = Optimizers(
                self._model, self._wrapped, self.experiment, replicas, continuing=self._optimizers
            )
        self._wrapped.train()
        if self._forward is None:
            self._forward, seconds = kernels.ready(
                self._wrapped, self.experiment, self.device, self._dtype
            )
            self._compile_s += seconds
        used = energy.joules()
        clock, started = measure.Stopwatch(self.device), 0.0
        losses, rate = torch.zeros((), device=self.device), 0.0
        self._watch.epoch(self._steps, recipe.batch)
        clock.start()
        for x, y in batches(
            self.images,
            recipe,
            seed=self.experiment.seed,
            epoch=number,
            rank=replicas.rank,
            workers=replicas.workers,
            device=self.device,
        ):
            started = started or time.time()
            rate = learning_rate(recipe, self._progress.share)
            losses += self._step(x, y, rate)
            # Reading the sum waits for a GPU, so a GPU is read only every LOOK_EVERY steps.
            step = self._progress.step
            look = self.device.type == "cpu" or step % LOOK_EVERY == 0
            if look and replicas.any(not math.isfinite(gpu.read(losses))):
                raise Diverged(f"the loss is {gpu.read(losses)} at step {step}")
        clock.stop()
        loss = gpu.read(replicas.total(losses / self._steps) / replicas.workers)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {number}")
        replicas.average_buffers(self._model, self._memories.values())
        metrics = (
            self._watch.columns
            | energy.since(used)
            | {
                "loss": loss,
                "lr": rate,
                "images_per_s": self._steps * recipe.batch / clock.seconds,
                "compile_s": self._compile_s,
                "sent_bytes_per_step": round(
                    replicas.sent_bytes_per_step(self._model, self._steps)
                ),
            }
        )
        return Trained(metrics, clock.seconds, started)

    def whole(self) -> nn.Module:
        self._model.eval()  # the model itself too if `whole` is a copy: train() resets the counters
        return self.replicas.whole(self._model)

    def memories(self) -> dict[str, Memory]:
        return {
            name: self.replicas.whole_memory(self._model, memory)
            for name, memory in self._memories.items()
        }

    def state(self) -> dict[str, Any]:
        return {
            "memories": self.memories(),
            "loss_scale": self._scaled.state,
            **self._optimizers.state(self._model),
        }

    def close(self) -> None:
        """Nothing to close: the run has started no other processes."""

    def _step(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Takes one step; returns the batch's loss."""
        recipe, model, optimizers = self.experiment.recipe, self._model, self._optimizers
        optimizers.set_rate(rate)
        # Before the forward pass, so that its activations reuse the memory of the last gradients.
        optimizers.zero_grad()
        mixed = torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)
        with self._watch.forward(x), mixed:
            assert self._forward is not None
            logits = self._forward(x)
        loss: Tensor = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
        for name, technique in self._techniques:
            loss = loss + technique.penalty(model, Batch(x, y, logits), self._memories[name])
        self._scaled.backward(loss)
        self._scaled.step(*optimizers.all)
        self._watch.step(model, optimizers.recipe)
        self._progress = self._progress._replace(step=self._progress.step + 1)
        for name, technique in self._techniques:
            technique.after_step(model, self._progress, self._memories[name], optimizers.of(name))
        return loss.detach()

    def _restructure(self, memories: dict[str, Memory]) -> bool:
        """Lets the techniques change layers; returns whether one did."""
        changed = [
            technique.restructure(self._model, self._progress, memories.get(name, {}))
            for name, technique in self._techniques
        ]
        return any(changed)
