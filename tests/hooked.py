"""A technique's hooks in the order of the loop, on any module and random images."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques import Batch, Memory, Progress, Technique

STEPS, IMAGES = 3, 8


@dataclass
class Hooked:
    """What three steps have left, and what was seen on the way."""

    model: nn.Module
    acted: list[str]
    metrics: dict[str, float | str]
    before_finish: Tensor  # logits of the trained weights, in evaluation
    after_finish: Tensor
    untouched: set[str] = field(default_factory=set)  # parameters acted on that got no gradient


def train(plain: nn.Module, technique: Technique, image_size: int, classes: int) -> Hooked:
    """Three epochs of one step each, on a copy of the model.

    Raises:
        ValueError: the technique does not fit the model.
    """
    torch.manual_seed(0)
    model, memory = copy.deepcopy(plain), Memory()
    technique.reshape(model)
    acted = technique.acts_on(model)
    technique.before_training(model, lambda address: _another(plain))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    x, y = torch.randn(IMAGES, 3, image_size, image_size), torch.arange(IMAGES) % classes
    own, untouched = technique.optimizer(model, 1e-3), set(acted)
    for step in range(STEPS):
        if technique.restructure(model, Progress(step, STEPS), memory):
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        model.train()
        logits = model(x)
        loss = F.cross_entropy(logits, y) + technique.penalty(model, Batch(x, y, logits), memory)
        model.zero_grad()
        loss.backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
        untouched -= reached
        for each in (optimizer, own):
            if each is not None:
                each.step()
        technique.after_step(model, Progress(step + 1, STEPS), memory, optimizer)
    names = {name for name, _ in model.named_parameters()}
    model.load_state_dict({**model.state_dict(), **technique.evaluated(model, memory)})
    model.eval()
    before = model(x).detach()
    technique.finish(model, memory)
    model.eval()
    after = model(x).detach()
    metrics = dict(technique.measure(model, memory))
    return Hooked(model, acted, metrics, before, after, untouched & names)


@torch.no_grad()
def _another(plain: nn.Module) -> nn.Module:
    """A teacher that answers otherwise than the model at its start."""
    teacher = copy.deepcopy(plain).eval()
    for parameter in teacher.parameters():
        parameter.mul_(1.5)
    return teacher


def zeros_used(model: nn.Module, x: Tensor) -> int:
    """Zeros among the weights that the products of one forward pass are made with.

    Seen where they are used, so that it does not matter which layer holds them, or what it makes
    of them before.
    """
    zeros: dict[str, list[int]] = {"all": []}
    names = ("linear", "conv1d", "conv2d", "conv3d")
    originals = {name: getattr(F, name) for name in names}

    def counting(name: str) -> object:
        def call(x: Tensor, weight: Tensor, *args: object, **kwargs: object) -> Tensor:
            zeros["all"].append(int((weight == 0).sum()))
            result: Tensor = originals[name](x, weight, *args, **kwargs)
            return result

        return call

    try:
        for name in names:
            setattr(F, name, counting(name))
        model(x)  # with gradients: without them an encoder goes its fast path
    finally:
        for name, original in originals.items():
            setattr(F, name, original)
    return sum(zeros["all"])
