"""The small ViT of Monarch's tests: its layers, its run, and which layers are replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from raybench.experiment import Experiment
from raybench.models import build
from raybench.techniques.layers.monarch_linear import MonarchLinear
from raybench.techniques.low_rank import LowRankLinear
from trainers.monarch import base

ATTENTION = {f"blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv", "proj")}
FEED_FORWARD = {f"blocks.{i}.mlp.fc{n}" for i in range(2) for n in (1, 2)}


def replaced(model: nn.Module) -> set[str]:
    kinds = (MonarchLinear, LowRankLinear)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def tiny(**values: Any) -> Experiment:
    """Two blocks of width 32 on 129 digits of 8x8 pixels: 2 epochs of 4 steps in fp32."""
    recipe = replace(base.recipe, epochs=2, batch=32, crop=1, precision="fp32")
    experiment = replace(base, model="vit32x2", image_size=8, subset=0.1, recipe=recipe)
    return replace(experiment, **values)


def plain() -> nn.Module:
    return build("vit32x2", classes=10, image_size=8)
