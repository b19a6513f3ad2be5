"""Low-rank linear layers, W = U V: the simple baseline for every structured matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Technique
from raybench.techniques.layers.linear_layers import STRUCTURED_LAYERS, Layers, chosen, put


class LowRankLinear(nn.Module):
    """(…, inputs) -> (…, outputs) through `rank` numbers, with `dense`'s sizes and scale."""

    def __init__(self, dense: nn.Linear, rank: int) -> None:
        super().__init__()
        inputs, outputs = dense.in_features, dense.out_features
        self.in_features, self.out_features = inputs, outputs
        self.factor1 = nn.Parameter(dense.weight.new_empty(rank, inputs))
        self.factor2 = nn.Parameter(dense.weight.new_empty(outputs, rank))
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        # The first factor keeps a token's scale; the second gives W the dense weights' deviation.
        spread = 1 / math.sqrt(inputs)
        nn.init.normal_(self.factor1, std=spread)
        dense_spread = float(dense.weight.detach().std())
        nn.init.normal_(self.factor2, std=dense_spread / (spread * math.sqrt(rank)))
        # As for Monarch's factors: dense fan-in / factor's fan-in / two factors.
        self.lr_scale = {"factor1": 0.5, "factor2": inputs / rank / 2}

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.factor1), self.factor2, self.bias)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs): the product, for a model that reads it directly. Gradients reach the
        factors; it costs as much as a dense layer."""
        return self.factor2 @ self.factor1

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={len(self.factor1)}"


@dataclass(frozen=True, kw_only=True)
class LowRank(Technique):
    """Replaces each linear layer by two factors of rank min(in, out) / blocks.

    A Monarch matrix of n blocks has the same number of parameters, (in + out) · min(in, out) / n.
    `blocks=0` is the dense model.
    """

    blocks: int = 4
    """Blocks of the Monarch matrix with as many parameters: 2 to 16."""
    layers: Layers = "both"
    """attention (queries, keys, values, projection), feed_forward, or both; all takes every linear
    layer except the classifier."""
    leave_out: str = ""
    """Names of layers to leave dense, as shell patterns separated by commas: blocks.0.*,*.proj."""
    scale_lr: bool = True
    """A separate learning rate for each factor, suited to Adam."""

    columns: ClassVar[Mapping[str, Column]] = {"structured_layers": STRUCTURED_LAYERS}

    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(strategy, "the factors are sharded over the workers; use zero2")
            for strategy in ("zero3", "zero3_offload")
        ),
    )

    def __post_init__(self) -> None:
        if self.blocks != 0 and not 2 <= self.blocks <= 16:
            raise ValueError(f"blocks is {self.blocks}: 2 to 16, or 0 for the dense model")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[LowRank, ...]:
        return tuple(cls(blocks=blocks) for blocks in (2, 4, 8))

    @property
    def active(self) -> bool:
        return bool(self.blocks)

    def acts_on(self, model: nn.Module) -> list[str]:
        return [f"{name}.factor{n}" for name in _factored(model) for n in "12"]

    def reshape(self, model: nn.Module) -> None:
        if not self.blocks:
            return
        for name, dense in chosen(model, self.layers, self.leave_out, self._saved).items():
            layer = LowRankLinear(dense, self._rank(dense))
            if not self.scale_lr:
                layer.lr_scale = {}
            put(model, name, layer)

    def _rank(self, dense: nn.Linear) -> int:
        return max(1, round(min(dense.in_features, dense.out_features) / self.blocks))

    def _saved(self, dense: nn.Linear) -> int:
        sizes = dense.in_features + dense.out_features
        return dense.weight.numel() - self._rank(dense) * sizes

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float | str]:
        return {"structured_layers": len(_factored(model))}


def _factored(model: nn.Module) -> dict[str, LowRankLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
