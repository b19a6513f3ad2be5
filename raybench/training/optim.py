"""Parameter groups, optimizers, and the learning rate as a pure function of progress."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from raybench.experiment import Recipe
from raybench.training import kernels

EMBEDDING = re.compile(r"(absolute_)?pos_embed(ding)?|(cls|dist|reg|class)_token")
"""Names of a ViT's embeddings in timm and torchvision. They are matched by name, because a
pipeline's stage is only a part of the model and has no `no_weight_decay`."""


def learning_rate(recipe: Recipe, share: float) -> float:
    """Learning rate after a `share` (0 to 1) of the steps.

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


def build_optimizer(
    model: nn.Module,
    recipe: Recipe,
    *,
    continuing: torch.optim.Optimizer | None = None,
    without: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all trainable parameters.

    Weight decay applies to matrices and filters. It does not apply to norms, biases (including
    stacked ones), position and token embeddings, or the names in the model's `no_weight_decay`. A
    module's `lr_scale`, if it has one, maps a parameter's name to a factor of its learning rate;
    parameters are grouped by it. Parameters that were in `continuing` keep their moments. Those in
    `without` have another optimizer.
    """
    others = {id(parameter) for parameter in without}
    scales = {
        f"{path}.{name}" if path else name: scale
        for path, module in model.named_modules()
        for name, scale in getattr(module, "lr_scale", {}).items()
    }
    named = getattr(model, "no_weight_decay", None)
    exempt = set(named()) if callable(named) else set()
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {(recipe.weight_decay, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in others:
            last = name.rpartition(".")[2]
            is_bias = parameter.ndim <= 1 or last.startswith("bias") or last.endswith("_step")
            free = is_bias or name in exempt or EMBEDDING.fullmatch(last)
            kind = (0.0 if free else recipe.weight_decay, float(scales.get(name, 1.0)))
            kinds.setdefault(kind, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in kinds.items()
    ]
    optimizer = _optimizer(groups, recipe)
    if continuing is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in continuing.state:
                    optimizer.state[parameter] = continuing.state[parameter]
                elif recipe.optimizer == "sgd" and recipe.momentum:
                    # The fused kernel needs one for all parameters of a group, or for none.
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=kernels.FUSED)
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=kernels.FUSED,
    )
