"""Parameter groups, optimizers, and the learning rate as a pure function of progress."""

from __future__ import annotations

import math

import torch
from torch import nn

from raybench.experiment import Recipe


def learning_rate(recipe: Recipe, share: float) -> float:
    """Learning rate when `share` (0 to 1) of the steps are done.

    lr ┤    ╭─╮
       │   ╱   ╲     linear rise over `warmup`, then cosine, linear or constant
     0 ┼──╱     ╲──▶ share
    """
    if share < recipe.warmup:
        return recipe.lr * share / recipe.warmup
    x = (share - recipe.warmup) / (1 - recipe.warmup)
    match recipe.schedule:
        case "cosine":
            return recipe.lr * 0.5 * (1 + math.cos(math.pi * x))
        case "linear":
            return recipe.lr * (1 - x)
        case "constant":
            return recipe.lr


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all trainable parameters.

    Matrices and filters are decayed, vectors (norms, biases) are not.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
