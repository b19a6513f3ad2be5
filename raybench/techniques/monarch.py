"""Monarch matrices in place of linear layers (Dao et al. 2022, arXiv 2204.00595)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique
from raybench.techniques.layers.linear_layers import STRUCTURED_LAYERS, Layers, chosen, put
from raybench.techniques.layers.monarch_linear import (
    MonarchLinear,
    multiply_out,
    parameters,
    project,
)

CHANGES = "monarch.mode is not from_scratch"
ZEROS = ("zero1", "zero2", "zero3", "zero3_offload")


def _changes(experiment: Any) -> bool:
    return bool(experiment.monarch.mode != "from_scratch")


@dataclass(frozen=True, kw_only=True)
class Monarch(Technique):
    """Replaces linear layers by Monarch matrices, for all of training or for a part of it.

    `blocks=0` is the dense model. A layer keeps (1 + min / max of its widths) / blocks of its
    parameters: at 4 blocks 768 -> 768 has 2 times fewer, 768 -> 3072 has 3.2 times fewer.
    """

    blocks: int = 4
    """Blocks on a factor's diagonal: 2 to 16."""
    layers: Layers = "both"
    """attention (queries, keys, values, projection), feed_forward, or both; all takes every linear
    layer except the classifier. Layers that the blocks do not divide stay dense."""
    leave_out: str = ""
    """Names of layers to leave dense, as shell patterns separated by commas: blocks.0.*,*.proj."""
    mode: Literal["from_scratch", "dense_to_sparse", "sparse_to_dense"] = "from_scratch"
    """from_scratch trains the factors. dense_to_sparse projects trained dense layers to factors and
    trains on; sparse_to_dense multiplies trained factors out and trains on."""
    switch_at: float = 0.8
    """Share of training after which the latter two modes change the layers, at the start of an
    epoch, at the latest of the last one. 0 with dense_to_sparse projects the weights of
    `start_from`. 1 changes the layers after the last step, without training the result."""
    scale_lr: bool = True
    """Larger learning rates for the factors, suited to Adam."""

    columns: ClassVar[Mapping[str, Column]] = {
        "structured_layers": STRUCTURED_LAYERS,
        "factors": Column(str, "", "Number of layers with each size of Monarch factors."),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("low_rank", "both replace the same linear layers; use only one of them"),
        *(
            Apart(other, f"{why}; use monarch.mode from_scratch", _changes, CHANGES)
            for other, why in (
                ("pipeline", "a stage cannot change its layers during training"),
                *((zero, "it has spread the layers over the workers") for zero in ZEROS),
            )
        ),
    )

    def __post_init__(self) -> None:
        if self.blocks != 0 and not 2 <= self.blocks <= 16:
            raise ValueError(f"blocks is {self.blocks}: 2 to 16, or 0 for the dense model")
        if not 0 <= self.switch_at <= 1:
            raise ValueError(f"switch_at is {self.switch_at}: a share of training, in [0, 1]")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Monarch, ...]:
        return tuple(cls(blocks=blocks) for blocks in (2, 4, 8))

    @property
    def active(self) -> bool:
        return bool(self.blocks)

    def acts_on(self, model: nn.Module) -> list[str]:
        """The factors; before dense_to_sparse and after sparse_to_dense the dense weights."""
        layers = _factored(model)
        if layers:
            return [f"{name}.factor{n}" for name in layers for n in "12"]
        return [f"{name}.weight" for name in self._chosen(model)]

    def reshape(self, model: nn.Module) -> None:
        if self.blocks and self.mode != "dense_to_sparse":
            for name, dense in self._chosen(model).items():
                put(model, name, self._scaled(MonarchLinear(dense, self.blocks, name)))
        elif self.blocks:
            self._chosen(model)  # raises at the start if no layer can be projected

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        # Not later than the last epoch, or the projected factors would never be trained.
        last = progress.step + progress.epoch_steps >= progress.steps and progress.epoch_steps > 0
        if progress.share >= self.switch_at or (last and self.switch_at < 1):
            return self._change(model)
        return False

    def finish(self, model: nn.Module, memory: Memory) -> None:
        self._change(model)

    def _change(self, model: nn.Module) -> bool:
        """Projects layers, or multiplies factors out, if not done yet; returns whether it did."""
        if not self.blocks or self.mode == "from_scratch":
            return False
        if self.mode == "sparse_to_dense":
            factored = _factored(model)
            for name, layer in factored.items():
                put(model, name, multiply_out(layer))
            return bool(factored)
        if _factored(model):
            return False
        for name, dense in self._chosen(model).items():
            put(model, name, self._scaled(project(dense, self.blocks, name)))
        return True

    def _chosen(self, model: nn.Module) -> dict[str, nn.Linear]:
        def saved(dense: nn.Linear) -> int:
            return dense.weight.numel() - parameters(dense, self.blocks)

        return chosen(model, self.layers, self.leave_out, saved)

    def _scaled(self, layer: MonarchLinear) -> MonarchLinear:
        if not self.scale_lr:
            layer.lr_scale = {}
        return layer

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float | str]:
        layers = list(_factored(model).values())
        return {"structured_layers": len(layers), "factors": listing(layers)}


def _factored(model: nn.Module) -> dict[str, MonarchLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, MonarchLinear)}


def listing(layers: list[MonarchLinear]) -> str:
    """The factors by size, as outputs x inputs of a block: `12 x (4 of 192x192 · 4 of 768x192)`."""
    kinds = Counter(
        " · ".join("{} of {}x{}".format(*factor.shape) for factor in (la.factor2, la.factor1))
        for la in layers
    )
    return ", ".join(f"{count} x ({kind})" for kind, count in kinds.items())
