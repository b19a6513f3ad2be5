"""A small network, and some steps of it with Quantize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from raybench.techniques import Progress
from raybench.techniques.quantize import Quantize


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 16),
        nn.GELU(),
        nn.Linear(16, 5),
    )


def run(
    technique: Quantize, steps: int = 8, *, model: nn.Module | None = None, bf16: bool = False
) -> nn.Module:
    """A small network after some steps with the technique, as the loop takes them."""
    torch.manual_seed(0)
    model, memory = model or network(), {}
    technique.reshape(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        technique.restructure(model, Progress(step, steps), {})
        x, y = torch.randn(16, 3, 4, 4), torch.randint(5, (16,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, steps), memory, None)
    return model
