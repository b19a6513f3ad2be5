"""Monarch matrices in place of linear layers (Dao et al. 2022, arXiv 2204.00595, section 3).

A Monarch matrix of n blocks is an n x n grid of blocks, each of rank r = min(in, out) / n²:

    in ─▶ n blocks F1 ─▶ transpose the n x n chunks of r ─▶ n blocks F2 ─▶ out
          (in/n → n r)                                      (n r → out/n)

    block (c, b) of the matrix = F2[c][:, chunk b] · F1[b][chunk c, :]

Parameters and products are 1/n + … of the dense layer's: (in + out) · min(in, out) / n. Letters of
shapes: T tokens, n blocks, r rank, I and O inputs and outputs of a block.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique
from raybench.techniques.layers.linear_layers import STRUCTURED_LAYERS, Layers, chosen, put


class _Product(torch.autograd.Function):
    """x (T, n I), F1 (n, n r, I), F2 (n, O, n r), bias (n O) -> (T, n O).

    The only copy is the transposition of the chunks; everything else is a matrix product that
    reads or writes its columns of x and y where they lie. Rows of F1 are ordered (c, r), so that a
    chunk is contiguous. The loops are over blocks: 2 to 16 products of many rows each. In bf16 a
    batched product into columns took 1.4 times as long, as oneDNN copies what is not contiguous.
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
        # As a product: of 4,096 x 3,072 in bf16 `sum` takes 4.4 ms, this 2.5.
        dbias = (dy.new_ones(1, len(dy)) @ dy).squeeze(0) if ctx.has_bias else None
        return dx, df1, df2, dbias


def _transposed(h_Tns: Tensor) -> Tensor:
    """(T, n, n r) -> (n, T, n r): chunk c of block b becomes chunk b of block c.

    It reads a token's numbers where they lie together; from (n, T, n r) it took 1.5 to 3.5 times as
    long, which is 5 % of a step. Where chunks allow, two or four bf16 numbers move as one: chunks
    of 6 take 0.5 of the time, of 48 0.9.
    """
    tokens, blocks, inner = h_Tns.shape
    dtype, chunk = h_Tns.dtype, inner // blocks * h_Tns.itemsize
    for wider in (torch.int32, torch.int64):
        if dtype == torch.bfloat16 and chunk % wider.itemsize == 0:
            h_Tns = h_Tns.view(wider)
    chunks = h_Tns.view(tokens, blocks, blocks, -1).permute(2, 0, 1, 3)
    return chunks.contiguous().view(blocks, tokens, -1).view(dtype)


class MonarchLinear(nn.Module):
    """(…, inputs) -> (…, outputs) by two block-diagonal factors, with `dense`'s sizes and scale."""

    def __init__(self, dense: nn.Linear, blocks: int, name: str = "layer") -> None:
        super().__init__()
        self.blocks = blocks
        inputs, outputs, rank = dense.in_features, dense.out_features, _rank(dense, blocks, name)
        new = dense.weight.new_empty
        self.factor1 = nn.Parameter(new(blocks, blocks * rank, inputs // blocks))
        self.factor2 = nn.Parameter(new(blocks, outputs // blocks, blocks * rank))
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        # F1 keeps a token's scale, and F2 gives the product the dense weights' spread: an entry of
        # it is a sum of r products.
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
            y = _Product.apply(flat, self.factor1.to(dtype), self.factor2.to(dtype), bias)
        return y.view(*x.shape[:-1], y.shape[1])

    def extra_repr(self) -> str:
        return f"blocks={self.blocks}"


def _rank(dense: nn.Linear, blocks: int, name: str) -> int:
    """Rank of each of the blocks² blocks. Raises ValueError where the sizes are no multiples."""
    for size, what in ((dense.in_features, "inputs"), (dense.out_features, "outputs")):
        if size % blocks:
            both = math.gcd(dense.in_features, dense.out_features)
            fitting = [n for n in range(2, 17) if both % n == 0]
            nearest = min(fitting, key=lambda n: abs(n - blocks), default=None)
            advice = f"{nearest} do" if nearest else "no number from 2 to 16 does"
            raise ValueError(
                f"{blocks} blocks do not divide the {size} {what} of {name}; {advice}, or leave it "
                "out by leave_out"
            )
    return max(1, round(min(dense.in_features, dense.out_features) / blocks**2))


@torch.no_grad()
def project(dense: nn.Linear, blocks: int, name: str = "layer") -> MonarchLinear:
    """The Monarch layer nearest to a dense one in the Frobenius norm.

    The blocks of the grid are independent, so it is the truncated SVD of each, all in one batch
    (Dao et al. 2022, section 3.3, there for square matrices).
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
    """(…, O, r) and (…, r, I) of equal scale, whose product is the truncated SVD of each matrix."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    root = values[..., None, :rank].sqrt()
    return left[..., :rank] * root, root.mT * right[..., :rank, :]


@torch.no_grad()
def multiply_out(layer: MonarchLinear) -> nn.Linear:
    """The dense layer with the product of the factors as its weight."""
    blocks, inner, inputs = layer.factor1.shape
    outputs, rank = layer.factor2.shape[1], inner // blocks
    f1 = layer.factor1.view(blocks, blocks, rank, inputs)  # b, c, r, I
    f2 = layer.factor2.view(blocks, outputs, blocks, rank)  # c, O, b, r
    grid = torch.einsum("cobr,bcri->cobi", f2, f1)
    dense = nn.Linear(blocks * inputs, blocks * outputs, bias=layer.bias is not None)
    dense.to(layer.factor1)
    dense.weight.copy_(grid.reshape(blocks * outputs, blocks * inputs))
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense


@dataclass(frozen=True, kw_only=True)
class Monarch(Technique):
    """Replaces linear layers by Monarch matrices, for all of training or for a part of it.

    `blocks=0` is the dense model. A layer keeps 1 / blocks of its parameters, plus a little where
    it is not square: at 4 blocks 768 -> 3072 has 3.2 times fewer.
    """

    blocks: int = 4
    """Blocks on a factor's diagonal: 2 to 16."""
    layers: Layers = "both"
    """attention (qkv, fused, and proj), feed_forward, both; all takes a mixer's tokens as well."""
    leave_out: str = ""
    """Names of layers to leave dense, shell patterns separated by commas: blocks.0.*,*.proj."""
    mode: Literal["from_scratch", "dense_to_sparse", "sparse_to_dense"] = "from_scratch"
    """dense_to_sparse projects trained layers and goes on; sparse_to_dense multiplies them out."""
    switch_at: float = 0.8
    """Share of training after which the latter two change the layers, at an epoch's start; 0 with
    dense_to_sparse projects the weights of `start_from`."""
    scale_lr: bool = True
    """Larger learning rates for the factors, as Adam wants them."""

    columns: ClassVar[Mapping[str, Column]] = {
        "structured_layers": STRUCTURED_LAYERS,
        "factors": Column(
            str, "", "How many layers have which factors, outputs x inputs of a block."
        ),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("low_rank", "both replace the linear layers; take one of them"),
        *(
            Apart(strategy, "the factors lie in parts on the workers; take zero2")
            for strategy in ("zero3", "zero3_offload")
        ),
        *(
            Apart(
                other,
                "layers change in the midst of training; take monarch.mode from_scratch",
                when=lambda experiment: experiment.monarch.mode != "from_scratch",
                condition="monarch.mode is not from_scratch",
            )
            for other in ("prune", "quantize", "zero1", "zero2", "pipeline")
        ),
    )

    def __post_init__(self) -> None:
        if self.blocks != 0 and not 2 <= self.blocks <= 16:
            raise ValueError(f"blocks is {self.blocks}: 2 to 16, or 0 for the dense model")
        if not 0 <= self.switch_at <= 1:
            raise ValueError(f"switch_at is {self.switch_at}: a share of training, in [0, 1]")

    @property
    def active(self) -> bool:
        return bool(self.blocks)

    def reshape(self, model: nn.Module) -> None:
        if self.blocks and self.mode != "dense_to_sparse":
            for name, dense in chosen(model, self.layers, self.leave_out).items():
                put(model, name, self._scaled(MonarchLinear(dense, self.blocks, name)))
        elif self.blocks:
            for name, dense in chosen(model, self.layers, self.leave_out).items():
                _rank(dense, self.blocks, name)  # what cannot be projected is told at the start

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        if progress.share < self.switch_at:
            return False
        return self._change(model)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        self._change(model)

    def _change(self, model: nn.Module) -> bool:
        """Projects or multiplies out what is still to be; whether there was anything."""
        if not self.blocks or self.mode == "from_scratch":
            return False
        if self.mode == "sparse_to_dense":
            found = {n: m for n, m in model.named_modules() if isinstance(m, MonarchLinear)}
            for name, layer in found.items():
                put(model, name, multiply_out(layer))
            return bool(found)
        if any(isinstance(module, MonarchLinear) for module in model.modules()):
            return False
        for name, dense in chosen(model, self.layers, self.leave_out).items():
            put(model, name, self._scaled(project(dense, self.blocks, name)))
        return True

    def _scaled(self, layer: MonarchLinear) -> MonarchLinear:
        if not self.scale_lr:
            layer.lr_scale = {}
        return layer

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float | str]:
        if not self.blocks:
            return {}
        layers = [m for m in model.modules() if isinstance(m, MonarchLinear)]
        return {"structured_layers": len(layers), "factors": listing(layers)}


def listing(layers: list[MonarchLinear]) -> str:
    """The factors by size: `12 x (4 of 192x192 · 4 of 768x192)`, outputs x inputs of a block."""
    kinds = Counter(
        " · ".join("{} of {}x{}".format(*factor.shape) for factor in (la.factor2, la.factor1))
        for la in layers
    )
    return ", ".join(f"{count} x ({kind})" for kind, count in kinds.items())
