"""MonarchLinear: a linear layer made of two block-diagonal factors (Dao et al. 2022, section 3).

A Monarch matrix of n blocks is an n x n grid of blocks, each of rank r = min(in, out) / n²:

    in ─▶ n blocks F1 ─▶ transpose the n x n chunks of r ─▶ n blocks F2 ─▶ out
          (in/n → n r)                                      (n r → out/n)

    block (c, b) of the matrix = F2[c][:, chunk b] · F1[b][chunk c, :]

The paper's matrix has the outputs in another order: output i of block c is y[i n + c], here it is
y[c O + i]. The paper's order costs a copy of y, and the outputs of a dense layer have no order to
preserve: the nearest matrix to 16 x 16 normal numbers (4 blocks, 200 draws) has a distance of
9.67 ± 0.50 here and 9.61 ± 0.50 in the paper's order; for single matrices either can be nearer.

It has (in + out) · min(in, out) / n parameters and as many multiplications for a token: 1/n to 2/n
of the dense layer's. Shape suffixes: T tokens, n blocks, r rank, I and O inputs and outputs of a
block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x (T, n I), F1 (n, n r, I), F2 (n, O, n r), bias (n O) -> (T, n O).

    The only copy is the transposition of the chunks; all other operations are matrix products that
    read or write columns of x and y in place. Rows of F1 are ordered (c, r), so that a chunk is
    contiguous. The loops go over blocks: 2 to 16 products of many rows each. In bf16 a batched
    product into columns took 1.4 times as long, because oneDNN copies non-contiguous tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, f1: Tensor, f2: Tensor, bias: Tensor | None) -> Tensor:
        blocks, inner, side = f1.shape
        outer = f2.shape[1]
        h = x.new_empty(len(x), blocks, inner)
        for b in range(blocks):
            torch.mm(x[:, b * side : (b + 1) * side], f1[b].t(), out=h[:, b])
        g = _transposed(h)
        y = x.new_empty(len(x), blocks * outer)
        for c in range(blocks):
            part = y[:, c * outer : (c + 1) * outer]
            if bias is None:
                torch.mm(g[c], f2[c].t(), out=part)
            else:
                torch.addmm(bias[c * outer : (c + 1) * outer], g[c], f2[c].t(), out=part)
        ctx.save_for_backward(x, f1, f2, g)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, f1, f2, g = ctx.saved_tensors
        blocks, _, side = f1.shape
        outer = f2.shape[1]
        dg, df2 = g.new_empty(g.shape[1], blocks, g.shape[2]), torch.empty_like(f2)
        for c in range(blocks):
            part = dy[:, c * outer : (c + 1) * outer]
            torch.mm(part, f2[c], out=dg[:, c])
            torch.mm(part.t(), g[c], out=df2[c])
        dh = _transposed(dg)
        dx, df1 = torch.empty_like(x), torch.empty_like(f1)
        for b in range(blocks):
            columns = slice(b * side, (b + 1) * side)
            torch.mm(dh[b], f1[b], out=dx[:, columns])
            torch.mm(dh[b].t(), x[:, columns], out=df1[b])
        # As a product: for 4,096 x 3,072 in bf16 `sum` takes 4.4 ms, this 2.5.
        dbias = (dy.new_ones(1, len(dy)) @ dy).squeeze(0) if ctx.has_bias else None
        return dx, df1, df2, dbias


def batched_product(x: Tensor, f1: Tensor, f2: Tensor, bias: Tensor | None) -> Tensor:
    """The same as `_Product` with one batched product for each factor: for a GPU, where a loop
    launches n kernels for small matrices, and for `torch.compile`."""
    blocks, inner, side = f1.shape
    h_nTs = torch.bmm(x.view(len(x), blocks, side).transpose(0, 1), f1.mT)
    chunks = h_nTs.view(blocks, len(x), blocks, inner // blocks).permute(2, 1, 0, 3)
    y_nTO = torch.bmm(chunks.reshape(blocks, len(x), inner), f2.mT)
    y = y_nTO.transpose(0, 1).reshape(len(x), -1)
    return y if bias is None else y + bias


def _transposed(h_Tns: Tensor) -> Tensor:
    """(T, n, n r) -> (n, T, n r): chunk c of block b becomes chunk b of block c.

    A token's numbers are contiguous in (T, n, n r); reading from (n, T, n r) took 1.5 to 3.5 times
    as long, which is 5 % of a step. If the chunk size allows, two or four bf16 numbers are moved as
    one: chunks of 6 then take 0.5 of the time, chunks of 48 0.9.
    """
    tokens, blocks, inner = h_Tns.shape
    dtype, chunk = h_Tns.dtype, inner // blocks * h_Tns.itemsize
    for wider in (torch.int32, torch.int64):
        if dtype == torch.bfloat16 and chunk % wider.itemsize == 0:
            h_Tns = h_Tns.view(wider)
    chunks = h_Tns.view(tokens, blocks, blocks, h_Tns.shape[2] // blocks).permute(2, 0, 1, 3)
    return chunks.contiguous().view(blocks, tokens, h_Tns.shape[2]).view(dtype)


class MonarchLinear(nn.Module):
    """(…, inputs) -> (…, outputs) by two block-diagonal factors, with `dense`'s sizes and scale.

    `weight` is the product of the factors, with their gradient. A model that reads it directly,
    `F.linear(x, self.qkv.weight)`, also trains the factors, at a dense layer's cost.
    """

    def __init__(self, dense: nn.Linear, blocks: int, name: str = "layer") -> None:
        super().__init__()
        self.blocks = blocks
        inputs, outputs, rank = dense.in_features, dense.out_features, _rank(dense, blocks, name)
        self.in_features, self.out_features = inputs, outputs
        new = dense.weight.new_empty
        self.factor1 = nn.Parameter(new(blocks, blocks * rank, inputs // blocks))
        self.factor2 = nn.Parameter(new(blocks, outputs // blocks, blocks * rank))
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        # F1 keeps a token's scale. F2 gives the product the dense weights' standard deviation; an
        # entry of the product is a sum of r products.
        spread1 = 1 / math.sqrt(self.factor1.shape[2])
        spread2 = float(dense.weight.detach().std()) / (spread1 * math.sqrt(rank))
        nn.init.normal_(self.factor1, std=spread1)
        nn.init.normal_(self.factor2, std=spread2)
        # A factor has fewer inputs than the dense layer, so Adam may take larger steps (Qiu et al.
        # 2024, "Compute Better Spent", section 3): dense fan-in / factor's fan-in / two factors.
        self.lr_scale = {
            f"factor{n}": inputs / factor.shape[2] / 2
            for n, factor in ((1, self.factor1), (2, self.factor2))
        }

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        mixed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(kind, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            batched = x.is_cuda or torch.compiler.is_compiling()
            product = batched_product if batched else _Product.apply
            y = product(flat, self.factor1.to(dtype), self.factor2.to(dtype), bias)
        return y.view(*x.shape[:-1], y.shape[1])

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs)"""
        blocks, inner, inputs = self.factor1.shape
        f1 = self.factor1.view(blocks, blocks, inner // blocks, inputs)  # b, c, r, I
        f2 = self.factor2.view(blocks, -1, blocks, inner // blocks)  # c, O, b, r
        grid = torch.einsum("cobr,bcri->cobi", f2, f1)
        return grid.reshape(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, blocks={self.blocks}"


def parameters(dense: nn.Linear, blocks: int) -> int:
    """The number of parameters of both factors. Raises ValueError if they do not fit."""
    rank = _rank(dense, blocks, "layer")
    return blocks * rank * (dense.in_features + dense.out_features)


def _rank(dense: nn.Linear, blocks: int, name: str) -> int:
    """Rank of each of the blocks² blocks. Raises ValueError if `blocks` does not divide a size."""
    for size, what in ((dense.in_features, "inputs"), (dense.out_features, "outputs")):
        if size % blocks:
            both = math.gcd(dense.in_features, dense.out_features)
            fitting = [n for n in range(2, 17) if both % n == 0]
            nearest = min(fitting, key=lambda n: abs(n - blocks), default=None)
            advice = f"{nearest} do" if nearest else "no number from 2 to 16 does"
            raise ValueError(f"{blocks} blocks do not divide the {size} {what} of {name}; {advice}")
    return max(1, round(min(dense.in_features, dense.out_features) / blocks**2))


@torch.no_grad()
def project(dense: nn.Linear, blocks: int, name: str = "layer") -> MonarchLinear:
    """The Monarch layer nearest to a dense one in the Frobenius norm.

    The blocks of the grid are independent, so the result is the truncated SVD of each, computed in
    one batch (Dao et al. 2022, section 3.3, there for square matrices).
    """
    layer = MonarchLinear(dense, blocks, name)
    rank = layer.factor1.shape[1] // blocks
    outputs, inputs = dense.weight.shape
    grid = dense.weight.detach().float().view(blocks, outputs // blocks, blocks, inputs // blocks)
    tall, wide = _factors(grid.transpose(1, 2), rank)
    # (c, b, O, r) -> F2 (c, O, b r), and (c, b, r, I) -> F1 (b, c r, I).
    layer.factor2.copy_(tall.permute(0, 2, 1, 3).reshape(layer.factor2.shape))
    layer.factor1.copy_(wide.permute(1, 0, 2, 3).reshape(layer.factor1.shape))
    return layer


def _factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(…, O, r) and (…, r, I) of equal scale; their product is the truncated SVD of each matrix."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    root = values[..., None, :rank].sqrt()
    return left[..., :rank] * root, root.mT * right[..., :rank, :]


@torch.no_grad()
def multiply_out(layer: MonarchLinear) -> nn.Linear:
    """The dense layer with the product of the factors as its weight."""
    dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense.to(layer.factor1.device, layer.factor1.dtype)
    dense.weight.copy_(layer.weight)
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense
