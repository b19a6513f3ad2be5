"""Limits the change of grid steps: a step is a scale and must stay above 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybench.techniques.layers.rounded_weights import STEP, RoundedWeights

LARGEST_CHANGE = 0.1  # relative change of a grid step in one optimizer step


@torch.no_grad()
def hold(model: nn.Module, memory: dict[str, Tensor]) -> None:
    """Keeps every grid step within a tenth of its value after the last optimizer step.

    A single large gradient could make it 0 or negative: at a learning rate of 0.1 that happened in
    the first quantized step, and the loss was NaN two steps later.
    """
    now = {
        f"{path}.{name}": step.detach()
        for path, module in model.named_modules()
        if isinstance(module, RoundedWeights)
        for name, step in module.named_parameters(recurse=False)
        if name.endswith(STEP)
    }
    before = [memory.get(name, step) for name, step in now.items()]
    if all(old.shape == new.shape for old, new in zip(before, now.values(), strict=True)):
        steps = [*now.values()]
        torch._foreach_maximum_(steps, torch._foreach_mul(before, 1 - LARGEST_CHANGE))
        torch._foreach_minimum_(steps, torch._foreach_mul(before, 1 + LARGEST_CHANGE))
    memory.update({name: step.clone() for name, step in now.items()})
