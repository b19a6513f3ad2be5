"""Distillation: a student also learns from a trained teacher's answers (Hinton et al. 2015,
"Distilling the Knowledge in a Neural Network", section 2).

    images ─┬─▶ student ─▶ logits ─┬─▶ cross-entropy with the labels ─────────▶ + ─▶ loss
            │                      └─▶ softmax(· / T) ┐                         ▲
            └─▶ teacher ─▶ logits ───▶ softmax(· / T) ┴─▶ T² · KL ── · weight ──┘
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Batch, Load, Memory, Progress, Technique


def divergence(logits_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student), both softened by T, in nats, mean over the batch, in fp32.

    T² makes the gradient's size independent of the temperature (section 2, last paragraph).
    """
    student = F.log_softmax(logits_BK.float() / temperature, 1)
    teacher = F.log_softmax(teacher_BK.float() / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


# Stored outside the models: a teacher must not be part of its student's state_dict,
# copies, checkpoints and file, and is freed together with the student.
_TEACHERS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Distill(Technique):
    """Adds `weight` · T² · KL to the loss; the cross-entropy with the labels keeps the weight 1.

    Hinton et al. average both terms, with a share a for the teacher. This equals a `weight` of
    a / (1 - a) with the learning rate multiplied by 1 - a. Their "considerably lower weight" of the
    labels, 0.1 against 0.9 (Tian et al. 2020, "Contrastive Representation Distillation"), is a
    weight of 9. Teacher and student see the same cropped, cut-out and mixed images; Beyer et al.
    2022 found this to matter ("Knowledge distillation: A good teacher is patient and consistent").
    """

    teacher: str = ""
    """A file of a trained model, written by `--store` or `--keep`, or `RESULTS#TRIAL`, such as
    results/sparsity_ladder#3. Empty: no teacher, and nothing is added to the loss."""
    temperature: float = 4.0
    """T: logits are divided by it before the softmax."""
    weight: float = 1.0
    """Weight of the added term; the cross-entropy has weight 1."""

    columns: ClassVar[Mapping[str, Column]] = {
        "distillation_loss": Column(
            float,
            "nats",
            "The term that a teacher adds to the loss, before its weight; mean of the epoch.",
        ),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart(
            "pipeline", "the teacher needs the images where the logits are; use 1 stage, 1 chunk"
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: it must be above 0")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}: 0 or more")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Distill, ...]:
        return tuple(cls(teacher=teacher, weight=weight) for weight in (1.0, 4.0, 9.0))

    @property
    def active(self) -> bool:
        return bool(self.teacher)

    @property
    def loads(self) -> tuple[str, ...]:
        return (self.teacher,) if self.teacher else ()

    def before_training(self, model: nn.Module, load: Load) -> None:
        if self.teacher:
            _TEACHERS[model] = load(self.teacher).requires_grad_(False)

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        """Changes no layer; resets the epoch's mean."""
        memory.clear()
        return False

    def penalty(self, model: nn.Module, batch: Batch, memory: Memory) -> Tensor | float:
        if not self.teacher:
            return 0.0
        dtype = batch.logits.dtype
        mixed = torch.autocast(batch.images.device.type, dtype, enabled=dtype != torch.float32)
        with torch.no_grad(), mixed:
            teacher_logits = _TEACHERS[model](batch.images)
        loss = divergence(batch.logits, teacher_logits, self.temperature)
        for name, value in (("sum", loss.detach()), ("steps", loss.new_ones(()))):
            memory[name] = memory[name] + value if name in memory else value
        return self.weight * loss

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        """The loss that the teacher added, before its weight, mean over the epoch's steps."""
        if "steps" not in memory:
            return {}
        return {"distillation_loss": float(memory["sum"] / memory["steps"])}
