"""What a technique is. One file each beside this one; a technique knows the model and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Batch", "Load", "Memory", "Progress", "Technique"]

Memory = dict[str, Tensor]
"""What a technique must remember that is not in the model (masks, averages). The loop owns it,
saves it with the checkpoint and hands it back, so that a technique itself stays a frozen value."""


Load = Callable[[str], nn.Module]
"""Gives the trained model at an address, a file or `RESULTS#TRIAL`, in evaluation mode on the
run's device. Raises ValueError where there is none, or one of other images or classes."""


class Batch(NamedTuple):
    """What a step has seen: images (B, 3, H, W); labels (B,), or (B, classes) where they are
    mixed; the model's logits (B, classes) in the step's dtype, with their graph."""

    images: Tensor
    labels: Tensor
    logits: Tensor


class Progress(NamedTuple):
    """Where a run stands: `step` optimizer steps are done of `steps` in all."""

    step: int
    steps: int

    @property
    def share(self) -> float:
        """Share of training that is done, from 0 to 1."""
        return self.step / self.steps


class Technique:
    """Seven moments at which a technique may act; each does nothing by default.

    A subclass is a frozen dataclass whose fields are the technique's hyperparameters. The work
    itself belongs in plain functions on a module, which a reader can call without a trainer.
    """

    def reshape(self, model: nn.Module) -> None:
        """Changes layers in place, before the model is wrapped and its optimizer is built."""

    def before_training(self, model: nn.Module, load: Load) -> None:
        """Called once, before training begins or goes on: the moment to load another model."""

    def restructure(self, model: nn.Module, progress: Progress) -> bool:
        """Changes layers in the midst of training; True where it did, for a new optimizer.

        Called at the start of every epoch, and on a stored model's skeleton as at the end.
        """
        return False

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor | float:
        """Term added to the loss of every step, after the forward pass of its batch."""
        return 0.0

    def after_step(self, model: nn.Module, progress: Progress, memory: Memory) -> None:
        """Acts on the weights after each optimizer step; `progress.step` counts that step."""

    def finish(self, model: nn.Module) -> None:
        """Turns the trained model, in place, into what is evaluated and stored."""

    def measure(self, model: nn.Module) -> Mapping[str, float | str]:
        """Columns about the model: every epoch, and at the end from the stored file."""
        return {}
