"""Speed-ups of Monarch matrices over dense: layers, a feed-forward, and whole training steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.models import avoid_slow_bf16, build
from raybench.techniques import Technique
from raybench.techniques.layers.linear_layers import Layers
from raybench.techniques.layers.monarch_linear import MonarchLinear, project
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch
from raybench.training import process
from raybench.training.optim import build_optimizer
from trainers.monarch import base

Precision = Literal["bf16", "fp32"]

TOKENS = 4096
ROUNDS = 7
STEP_ROUNDS = 3
IMAGES = 21  # at 224 pixels: 21 x 197 tokens are about TOKENS
STEPS: dict[str, tuple[str, int, Layers]] = {  # name -> timm's model, blocks, which layers
    "step_vit_s": ("vit_small_patch16_224", 8, "both"),
    "step_vit_b": ("vit_base_patch16_224", 4, "both"),
    "step_mixer_b": ("mixer_b16_224", 4, "all"),  # token-mixing layers too, as in the paper
}
CLAIMS = {
    "layer_768_3072_nb4": "reach 2.7",
    "layer_768_3072_nb8": "reach 3.7",
    "mlp_nb4": "reach 2.7",
    "step_vit_s": "reach 2.0",
    "step_vit_b": "reach 2.0",
    "step_mixer_b": "reach 2.0",
}
claims = CLAIMS | {f"{name}_fp32": claim for name, claim in CLAIMS.items()}
claims["project_s"] = "at most 0.3"


def measure() -> dict[str, float]:
    """Speed-ups of forward and backward, dense over Monarch: medians of interleaved rounds.

    Names with `_fp32` are in fp32, the others in bf16. `low_rank_…` is the same for low-rank layers
    with as many parameters. Steps are whole training steps with AdamW on 21 images at 224 pixels.
    """
    process.prepare(threads=1)
    figures: dict[str, float] = {}
    precisions: dict[Precision, str] = {"bf16": "", "fp32": "_fp32"}
    for precision, suffix in precisions.items():
        speed_ups: dict[str, float] = {}
        for blocks in (4, 8):
            speed_ups |= _layer(f"layer_768_3072_nb{blocks}", blocks, precision)
        speed_ups |= _feed_forward("mlp_nb4", precision)
        for name, (model, blocks, layers) in STEPS.items():
            speed_ups |= _step(name, model, blocks, layers, precision)
        figures |= {name + suffix: value for name, value in speed_ups.items()}
    dense = nn.Linear(768, 3072)
    project(dense, 4)
    began = time.perf_counter()
    project(dense, 4)
    return figures | {"project_s": time.perf_counter() - began, "rounds": ROUNDS}


def _layer(name: str, blocks: int, precision: Precision) -> dict[str, float]:
    dense = nn.Linear(768, 3072)
    sides = {
        "dense": dense,
        "monarch": MonarchLinear(dense, blocks),
        "low_rank": LowRankLinear(dense, 768 // blocks),
    }
    return _forward_and_backward(name, sides, precision)


def _feed_forward(name: str, precision: Precision) -> dict[str, float]:
    up, down = nn.Linear(768, 3072), nn.Linear(3072, 768)
    sides = {
        "dense": nn.Sequential(up, nn.GELU(), down),
        "monarch": nn.Sequential(MonarchLinear(up, 4), nn.GELU(), MonarchLinear(down, 4)),
        "low_rank": nn.Sequential(LowRankLinear(up, 192), nn.GELU(), LowRankLinear(down, 192)),
    }
    return _forward_and_backward(name, sides, precision)


def _forward_and_backward(
    name: str, sides: Mapping[str, nn.Module], precision: Precision
) -> dict[str, float]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(TOKENS, 768, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(sides["dense"](x.float())).to(dtype)
    for module in sides.values():
        module.to(dtype)  # times the layer alone, without autocast's casts

    def run(module: nn.Module) -> Callable[[], None]:
        def once() -> None:
            x.grad = None
            module.zero_grad(set_to_none=True)
            module(x).backward(grad)

        return once

    return _speed_ups(name, {side: run(module) for side, module in sides.items()}, ROUNDS)


def _step(
    name: str, model: str, blocks: int, layers: Layers, precision: Precision
) -> dict[str, float]:
    techniques: dict[str, Technique] = {
        "dense": Monarch(blocks=0),
        "monarch": Monarch(blocks=blocks, layers=layers),
        "low_rank": LowRank(blocks=blocks, layers=layers),
    }
    x, y = torch.randn(IMAGES, 3, 224, 224), torch.randint(10, (IMAGES,))
    sides = {side: _training(model, t, x, y, precision) for side, t in techniques.items()}
    return _speed_ups(name, sides, STEP_ROUNDS)


def _training(
    name: str, technique: Technique, x: Tensor, y: Tensor, precision: Precision
) -> Callable[[], None]:
    model = build(name, classes=10, image_size=224)
    technique.reshape(model)
    if precision == "bf16":
        avoid_slow_bf16(model)
    optimizer = build_optimizer(model, replace(base.recipe, lr=1e-4))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    return step


def _speed_ups(name: str, sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of the dense side over those of each other side: medians of ratios per round."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, run in sides.items():
            began = time.perf_counter()
            run()
            if number:  # the first round chooses oneDNN's kernels
                seconds[side].append(time.perf_counter() - began)
    figures: dict[str, float] = {}
    for side, prefix in (("monarch", ""), ("low_rank", "low_rank_")):
        ratios = [a / b for a, b in zip(seconds["dense"], seconds[side], strict=True)]
        figures[prefix + name] = median(ratios)
        if not prefix:
            figures |= {f"{name}_min": min(ratios), f"{name}_max": max(ratios)}
        print(f"{prefix}{name}: {figures[prefix + name]:.2f}", file=sys.stderr, flush=True)
    return figures
