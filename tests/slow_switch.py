"""A mixture of experts by a loop over its assignments: the reference of its tests."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from raybench.techniques.switch import Mixture


def routed(mixture: Mixture, x: Tensor) -> tuple[Tensor, list[list[int]], list[tuple[int, int]]]:
    """Probabilities, each token's experts from the best on, and the (token, expert) kept."""
    chosen, tokens = mixture.settings, len(x)
    p = F.linear(x, mixture.router.weight).softmax(-1)
    order = [sorted(range(chosen.experts), key=row.__getitem__, reverse=True) for row in p.tolist()]
    choices = [row[: chosen.top_k] for row in order]
    capacity: float = math.inf
    if mixture.training and chosen.capacity_factor < math.inf:
        even = Fraction(tokens * chosen.top_k, chosen.experts)
        capacity = math.ceil(Fraction(chosen.capacity_factor) * even)
    taken, kept = Counter(), []
    for rank in range(chosen.top_k):  # first choices go before second ones
        for token in range(tokens):
            expert = choices[token][rank]
            if taken[expert] < capacity:
                taken[expert] += 1
                kept.append((token, expert))
    return p, choices, kept


def slow(mixture: Mixture, x: Tensor) -> Tensor:
    """The mixture by a loop over its assignments; x is (T, D)."""
    p, choices, kept = routed(mixture, x)
    experts, normalized = mixture.experts, mixture.settings.gate == "normalized"
    out = [torch.zeros_like(x[0]) for _ in x]
    for token, expert in kept:
        hidden = F.linear(x[token], experts.weight1[expert], experts.bias1[expert])
        answer = F.linear(experts.act(hidden), experts.weight2[expert], experts.bias2[expert])
        gate = p[token, expert]
        if normalized and len(choices[token]) == 1:
            gate = gate / gate.detach()
        elif normalized:
            gate = gate / p[token, choices[token]].sum()
        out[token] = out[token] + gate * answer
    y = torch.stack(out)
    if mixture.shared is not None:
        first, second = mixture.shared.fc1, mixture.shared.fc2
        hidden = F.gelu(F.linear(x, first.weight, first.bias))
        y = y + F.linear(hidden, second.weight, second.bias)
    return y


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, name: str = "y") -> None:
    """Within `tolerance` of the largest value."""
    assert found.shape == wanted.shape
    largest = max(1e-3, float(wanted.detach().abs().max()))
    assert float((found.detach() - wanted.detach()).abs().max()) <= tolerance * largest, name
