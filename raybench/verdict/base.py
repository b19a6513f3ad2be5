"""The start of a study: the baseline's recipe, and the techniques that fit its model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from raybench.experiment import Experiment, Recipe, conflicts, nearest, technique_types
from raybench.models import outline
from raybench.training import trainer
from raybench.verdict.arms import CHECKPOINTING, Arms, Setting, settings_of

FAMILY = "which_pays"
WITH_BATCH_NORM = Recipe(epochs=3, batch=64, lr=0.1, weight_decay=5e-4, warmup=0.2)
WITHOUT = Recipe(epochs=3, batch=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, warmup=0.15)
FROM_TRAINED = 0.1  # factor of the learning rate if the first weights are those of a trained model


def names() -> list[str]:
    """Everything that a study can try, by name."""
    return [*technique_types(), CHECKPOINTING]


def recipe_of(model: str, *, classes: int, image_size: int) -> Recipe:
    """SGD for a network with batch norms, AdamW for every other."""
    modules = outline(model, classes=classes, image_size=image_size).modules()
    return WITH_BATCH_NORM if any(isinstance(m, _BatchNorm) for m in modules) else WITHOUT


def fitting(
    base: Experiment, techniques: list[str], teacher: str, goal: str
) -> tuple[Arms, dict[str, str]]:
    """The arms of a study, and the techniques that do not fit the model, each with the reason.

    Args:
        techniques: by name; empty for all that may serve the goal. Checkpointing is only
            for the goal memory: otherwise it changes only the time.
        teacher: address of the trained model for techniques that learn from one.

    Raises:
        ValueError: a technique has no such name, or none of them fits.
    """
    for name in techniques:
        if name not in names():
            raise ValueError(f"no technique {name!r}; {nearest(name, names())}")
    settings: dict[str, tuple[Setting, ...]] = {}
    reasons: dict[str, str] = {}
    goals = {name: kind.goals for name, kind in technique_types().items()}
    goals[CHECKPOINTING] = ("memory",)
    every = [name for name in names() if not goals[name] or goal in goals[name]]
    for name in techniques or every:
        fit = []
        for setting in settings_of(name, base, teacher):
            reason = _reason(base, setting)
            if reason is None:
                fit.append(setting)
            else:
                reasons[name] = reason
        if fit:
            settings[name] = tuple(fit)
            reasons.pop(name, None)
    if not settings:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ValueError(f"no technique fits {base.model}: {listed}")
    return Arms(base, settings), reasons


def _reason(base: Experiment, setting: Setting) -> str | None:
    """Why a setting does not fit the model; None if it does."""
    changes: dict[str, Any] = dict(setting)
    try:
        experiment = replace(base, **changes)
        if apart := conflicts(experiment):
            return apart[0]
        trainer.check(experiment)
    except ValueError as error:
        return " ".join(str(error).split())
    return None
