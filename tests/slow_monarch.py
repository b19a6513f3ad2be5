"""Monarch written out block by block: the reference of its tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raybench.techniques.layers.monarch_linear import MonarchLinear


def matrix(layer: MonarchLinear) -> Tensor:
    """The layer's matrix: block (c, b) is F2[c][:, chunk b] · F1[b][chunk c, :]."""
    n, rank = layer.blocks, layer.factor1.shape[1] // layer.blocks
    rows = []
    for c in range(n):
        row = []
        for b in range(n):
            outer = layer.factor2[c][:, b * rank : (b + 1) * rank]
            inner = layer.factor1[b][c * rank : (c + 1) * rank, :]
            row.append(outer @ inner)
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows, dim=0)


def slow(layer: MonarchLinear, x: Tensor) -> Tensor:
    return F.linear(x, matrix(layer), layer.bias)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, name: str = "y") -> None:
    """Within `tolerance` of the largest value."""
    assert found.shape == wanted.shape
    largest = float(wanted.detach().abs().max())
    assert largest > 0, name
    assert float((found.detach() - wanted.detach()).abs().max()) <= tolerance * largest, name
