"""Technique: a frozen dataclass of hyperparameters, with hooks and declarations.

reshape ─▶ before_training ─▶ ┌ restructure ─▶ (penalty ─▶ after_step) × steps ┐ × epochs
                              └──────── evaluated weights ─▶ measure ◀─────────┘
last epoch:   evaluated weights ─▶ finish ─▶ batch norms recomputed ─▶ stored, scored, measured
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from raybench.results.column import Column

__all__ = ["Apart", "Batch", "Load", "Memory", "Progress", "Technique"]

Memory = dict[str, Tensor]
"""A technique's state outside the model (masks, averages). The loop owns it, saves it with the
checkpoint and passes it in, so that a technique itself stays a frozen value. An entry under a
parameter's name has that parameter's shape; a strategy that shards the parameter also shards and
joins the entry."""


Load = Callable[[str], nn.Module]
"""Loads the trained model at an address, a file or `RESULTS#TRIAL`, in evaluation mode on the
run's device. Raises ValueError if there is none, or if it is for other images or classes."""


class Batch(NamedTuple):
    """The tensors of a step: images (B, 3, H, W); labels (B,), or (B, classes) if they are mixed;
    the model's logits (B, classes) in the step's dtype, with their graph."""

    images: Tensor
    labels: Tensor
    logits: Tensor


class Progress(NamedTuple):
    """The progress of a run: `step` of `steps` optimizer steps are done."""

    step: int
    steps: int
    epoch_steps: int = 0
    """Steps of an epoch; 0 if unknown."""

    @property
    def share(self) -> float:
        """Share of training that is done, from 0 to 1."""
        return self.step / self.steps


class Apart(NamedTuple):
    """A declaration that the technique cannot be combined with `other`."""

    other: str
    """Field name of another technique (`monarch`), a strategy (`zero3`), `pipeline` or
    `checkpointing`."""
    reason: str
    """One clause that completes "prune and expert cannot be combined: …", with advice."""
    when: Callable[[Any], bool] | None = None
    """Whether the declaration holds for an Experiment. None: always."""
    condition: str = ""
    """`when` in words, for the printed matrix, such as "prune.scope is global"."""


class Technique:
    """The hooks of a technique; each does nothing by default.

    A subclass is a frozen dataclass whose fields are the technique's hyperparameters. The work
    itself belongs in plain functions on a module, which can be called without a trainer.
    """

    columns: ClassVar[Mapping[str, Column]] = {}
    """Columns that `measure` reports. `<technique>_coverage` is added for every technique."""

    apart: ClassVar[tuple[Apart, ...]] = ()
    """What it cannot be combined with. A declaration by either side counts for both."""

    compiles: ClassVar[bool] = True
    """Whether `torch.compile` can compile a model with its layers into one graph."""

    goals: ClassVar[tuple[str, ...]] = ()
    """Goals of a comparison in which it is tried unless named, such as `train_time`. Empty: all."""

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Technique, ...]:
        """The settings that a comparison of techniques tries, from mildest to strongest.

        Args:
            teacher: address of a trained model, for a technique that learns from one.
        """
        return (cls(),)

    @property
    def active(self) -> bool:
        """False for settings that mean the plain model, such as `experts=0`: no hook is called."""
        return True

    @property
    def loads(self) -> tuple[str, ...]:
        """Addresses of the trained models that it learns from. Their training images count as seen,
        and a model that was trained on the run's test images is refused."""
        return ()

    def acts_on(self, model: nn.Module) -> list[str]:
        """Names of the parameters on which it acts, after `reshape`; all of them by default.

        Their share of the model's values is the column `<technique>_coverage`.
        """
        return [name for name, _ in model.named_parameters()]

    def reshape(self, model: nn.Module) -> None:
        """Changes layers in place, before the model is wrapped and its optimizer is built."""

    def before_training(self, model: nn.Module, load: Load) -> None:
        """Called once, before training starts or resumes: the place to load another model."""

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        """Changes layers during training; returns True if it did, so that the optimizer is rebuilt.

        Called at the start of every epoch, and on a stored model's skeleton as if at the end.
        """
        return False

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer | None:
        """The technique's own optimizer for some parameters; the recipe's optimizer has the others.

        The schedule scales its learning rates like the recipe's; `lr` is the recipe's peak rate.
        """
        return None

    def penalty(self, model: nn.Module, batch: Batch, memory: Memory) -> Tensor | float:
        """A term added to the loss of every step, after the forward pass of its batch."""
        return 0.0

    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Acts on the weights, or on the optimizer's state, after each optimizer step.

        `progress.step` includes that step.
        """

    def evaluated(self, model: nn.Module, memory: Memory) -> Mapping[str, Tensor]:
        """Values to evaluate and store in place of the trained ones, by their names in the
        state_dict; training continues with the trained ones. Empty by default."""
        return {}

    def finish(self, model: nn.Module, memory: Memory) -> None:
        """Turns the trained model, in place, into the model to evaluate and store."""

    def measure(self, model: nn.Module, memory: Memory) -> Mapping[str, float | str]:
        """Values of `columns`, in every epoch, and at the end for the stored file."""
        return {}
