"""Arms: the baseline, and each technique with a few settings to choose from, in one space.

lr_step   learning rate: the recipe's, times 2^(lr_step / 2)
prune     0: off; 1, 2, 3: the settings of the technique, from the mildest to the strongest
…         the same for each technique that fits the model
epochs, seed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raybench import models
from raybench.experiment import Experiment, checked, conflicts, technique_types

LR_STEPS = 8  # half octaves on each side: learning rates from 1/16 to 16 times the recipe's
MOST_SEED = 10_000
CHECKPOINTING = "checkpointing"

Setting = Mapping[str, Any]
"""The fields of an Experiment that a technique sets."""


@dataclass(frozen=True, order=True)
class Run:
    """A trial of a study; runs with equal fields are the same run."""

    settings: tuple[tuple[str, int], ...]
    """The techniques that are on, by name, each with the number of its setting from 1."""
    lr_step: int
    epochs: int
    seed: int

    @property
    def arm(self) -> tuple[str, ...]:
        """The names of its techniques; empty for the baseline."""
        return tuple(name for name, _ in self.settings)

    def params(self, techniques: tuple[str, ...]) -> dict[str, int]:
        """The parameters that a space suggests for this run."""
        chosen = dict(self.settings)
        return {
            "lr_step": self.lr_step,
            "epochs": self.epochs,
            "seed": self.seed,
            **{name: chosen.get(name, 0) for name in techniques},
        }


@dataclass(frozen=True)
class Arms:
    """What a study compares: a baseline, and the settings of the techniques that fit it."""

    base: Experiment
    settings: dict[str, tuple[Setting, ...]]
    """Technique name -> its settings, from the mildest to the strongest."""

    @property
    def techniques(self) -> tuple[str, ...]:
        return tuple(self.settings)

    def experiment(self, run: Run) -> Experiment:
        """The Experiment of a run."""
        recipe = self.base.recipe
        recipe = replace(recipe, lr=recipe.lr * 2 ** (run.lr_step / 2), epochs=run.epochs)
        changes: dict[str, Any] = {}
        for name, number in run.settings:
            changes |= self.settings[name][number - 1]
        return replace(self.base, recipe=recipe, seed=run.seed, **changes)

    def run_of(self, params: Mapping[str, Any]) -> Run:
        """The run with these parameters."""
        on = tuple((name, int(params[name])) for name in self.techniques if params[name])
        return Run(on, int(params["lr_step"]), int(params["epochs"]), int(params["seed"]))

    def space(self, trial: Any) -> Experiment:
        """The same as a search space: a function of an `optuna.Trial`."""
        params = {
            "lr_step": trial.suggest_int("lr_step", -LR_STEPS, LR_STEPS),
            "epochs": trial.suggest_int("epochs", 1, 4 * self.base.recipe.epochs),
            "seed": trial.suggest_int("seed", 0, MOST_SEED),
        }
        for name, choices in self.settings.items():
            params[name] = trial.suggest_int(name, 0, len(choices))
        return models.with_source(checked(self.experiment(self.run_of(params))))

    def together(self, one: str, other: str) -> bool:
        """Whether two techniques can be combined in all their settings."""
        pairs = ({**a, **b} for a in self.settings[one] for b in self.settings[other])
        return not any(conflicts(replace(self.base, **both)) for both in pairs)


def settings_of(name: str, base: Experiment, teacher: str) -> tuple[Setting, ...]:
    """The settings of a technique that a study tries, from the mildest to the strongest.

    Args:
        teacher: the address of a trained model, for the technique that learns from one.
    """
    if name == CHECKPOINTING:
        return ({"parallel": replace(base.parallel, checkpointing=True)},)
    kind = technique_types()[name]
    return tuple({name: candidate} for candidate in kind.candidates(teacher))
