"""Optimizers: the recipe's, and those that techniques supply for some of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raybench.experiment import Experiment
from raybench.parallel.ddp import Replicas
from raybench.training.optim import build_optimizer


class Optimizers:
    """One run's optimizers, stepped together; the schedule scales all of them.

    Args:
        continuing: the optimizers before layers changed; remaining parameters keep their moments.

    Raises:
        ValueError: a technique has its own optimizer, and the strategy shards gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        experiment: Experiment,
        replicas: Replicas,
        *,
        continuing: Optimizers | None = None,
    ) -> None:
        self.replicas = replicas
        self.supplied: dict[str, torch.optim.Optimizer] = {}
        for name, technique in experiment.techniques():
            optimizer = technique.optimizer(model, experiment.recipe.lr)
            if optimizer is None:
                continue
            if experiment.parallel.strategy.startswith("zero"):
                raise ValueError(
                    f"{name} has an optimizer of its own, but parallel.strategy "
                    f"{experiment.parallel.strategy!r} shards only the recipe's; use 'ddp'"
                )
            for group in optimizer.param_groups:
                group.setdefault("lr_scale", group["lr"] / experiment.recipe.lr)
            if continuing is not None and name in continuing.supplied:
                _keep_moments(optimizer, continuing.supplied[name])
            self.supplied[name] = optimizer
        taken = [
            parameter
            for optimizer in self.supplied.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        built = build_optimizer(
            wrapped,
            experiment.recipe,
            continuing=None if continuing is None else continuing.recipe,
            without=taken,
        )
        self.recipe: torch.optim.Optimizer = replicas.spread(built)

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        return [self.recipe, *self.supplied.values()]

    def of(self, technique: str) -> torch.optim.Optimizer:
        """The optimizer for a technique's `after_step`: its own, else the recipe's."""
        return self.supplied.get(technique, self.recipe)

    def set_rate(self, rate: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Model and optimizers as a single process would have them."""
        state = self.replicas.state(model, self.recipe)
        state["optimizers"] = {
            name: self.replicas.state(model, optimizer)["optimizer"]
            for name, optimizer in self.supplied.items()
        }
        return state

    def load(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Resumes from a `state`."""
        self.replicas.load(model, self.recipe, state)
        for name, optimizer in self.supplied.items():
            supplied = {"model": state["model"], "optimizer": state["optimizers"][name]}
            self.replicas.load(model, optimizer, supplied)


def _keep_moments(optimizer: torch.optim.Optimizer, before: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[Tensor, Any] = before.state
    optimizer.state.update({p: moments[p] for p in parameters if p in moments})
