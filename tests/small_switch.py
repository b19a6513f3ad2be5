"""Small mixtures of experts for their tests: random ones, steered ones, and one in a run."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from raybench.experiment import Experiment
from raybench.techniques import Batch
from raybench.techniques.switch import Mixture, Switch
from trainers.switch_vit import base

UNSEEN = Batch(*[torch.empty(0)] * 3)  # a mixture's penalty is of what it kept
PLAIN = Switch(experts=4, blocks="all", jitter=0.0, balance_loss=0.0, z_loss=0.0)


def mixture_of(dense: nn.Module, chosen: Switch, *, seed: int = 0) -> Mixture:
    """A mixture of which no two experts are alike, biases included."""
    torch.manual_seed(seed)
    mixture = Mixture(dense, chosen)
    for parameter in mixture.parameters():
        nn.init.normal_(parameter, std=0.3)
    return mixture


def steered(chosen: Switch, *, width: int = 8, confidence: float = 40.0) -> Mixture:
    """A mixture whose router sends a token with the largest feature e to expert e."""
    mixture = mixture_of(Mlp(width, 16), chosen)
    weight = torch.zeros(chosen.experts, width)
    weight[:, : chosen.experts] = confidence * torch.eye(chosen.experts)
    mixture.router.weight.data = weight
    return mixture


def sent_to(experts: list[int], width: int = 8) -> Tensor:
    """A token for each number, which `steered` sends to that expert."""
    return F.one_hot(torch.tensor(experts), width).float()


def tiny(**values: object) -> Experiment:
    """Two blocks of width 32 on 129 digits of 8x8 pixels: 4 steps in fp32."""
    recipe = replace(base.recipe, epochs=1, batch=32, crop=1, precision="fp32")
    experiment = replace(base, model="vit32x2", image_size=8, subset=0.1, recipe=recipe)
    return replace(experiment, **values)
