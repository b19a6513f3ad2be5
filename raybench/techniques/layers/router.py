"""Router: chooses the experts of a token by a linear layer; training adds jitter to its input.

Shape suffixes: T tokens, E experts, D width, N assignments of a token to an expert.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques.layers.experts import loads


class Router(nn.Linear):
    """(T, D) -> logits (T, E)."""

    def __init__(self, width: int, experts: int, jitter: float) -> None:
        super().__init__(width, experts, bias=False)
        self.jitter = jitter
        nn.init.trunc_normal_(self.weight, std=0.02)  # gives initial logits of about ±0.3

    def forward(self, x_TD: Tensor) -> Tensor:
        if not (self.training and self.jitter):
            return F.linear(x_TD, self.weight)
        logits_TE: Tensor = _JitteredLogits.apply(x_TD, self.weight, self.jitter)
        return logits_TE


def first_come(expert_N: Tensor, experts: int, capacity: int) -> Tensor:
    """(N,) bool: whether the assignment is among the first `capacity` ones of its expert."""
    order_N = torch.sort(expert_N, stable=True).indices
    count_E = loads(expert_N, experts)
    place_N = torch.arange(len(expert_N), device=expert_N.device)
    begin_E = count_E.cumsum(0) - count_E
    kept = torch.empty_like(expert_N, dtype=torch.bool)
    kept[order_N] = place_N - begin_E[expert_N[order_N]] < capacity
    return kept


def within_capacity(expert_N: Tensor, experts: int, factor: float) -> Tensor:
    """(N,) bool: whether the assignment fits; each expert takes `factor` times an even share."""
    share = factor * len(expert_N) / experts
    return first_come(expert_N, experts, math.ceil(share - 1e-9))  # 1.1 * 50 / 11 must be 5


class _JitteredLogits(torch.autograd.Function):
    """Logits (T, E) of rows (T, D) times noise from [1 - jitter, 1 + jitter].

    The noise has 256 levels, and one random number gives eight values: `uniform_` took 5 ns per
    value, 1.5 % of a training step of a ViT with six mixtures. Only one byte per value is kept for
    the backward pass; the noise and the product took 40 MB per mixture, with 16,640 tokens.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, jitter: float) -> Tensor:
        words = _words(x_TD.numel() // 8 + 1, x_TD.device)
        level_TD = words.view(torch.uint8)[: x_TD.numel()].view(x_TD.shape)
        ctx.save_for_backward(x_TD, weight_ED, level_TD)
        ctx.jitter = jitter
        return F.linear(_noise(level_TD, jitter).mul_(x_TD), weight_ED)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_ED, level_TD = ctx.saved_tensors
        noise_TD = _noise(level_TD, ctx.jitter)
        grad_TD = (grad_TE @ weight_ED).mul_(noise_TD)
        return grad_TD, grad_TE.T @ noise_TD.mul_(x_TD), None


def _words(count: int, device: torch.device) -> Tensor:
    """Random 64-bit words, (count,)."""
    if torch.compiler.is_compiling():  # `random_` would cut the graph
        return torch.randint(-(2**63), 2**63 - 1, (count,), device=device)
    return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None)


def _noise(level: Tensor, jitter: float) -> Tensor:
    """Noise from 1 - jitter at level 0 to 1 + jitter at level 255."""
    return level.float().mul_(2 * jitter / 255).add_(1 - jitter)
