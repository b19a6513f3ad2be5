"""Magnitude pruning during training (Zhu & Gupta 2017, "To prune, or not to prune", section 3).

The rule is that of TensorFlow Model Optimization, step for step:

    sparsity
    final   ┤              ●   ●─────────   polynomial: final + (initial - final) * (1 - x) ** power
            │          ●       ╵            x = (step - begin) / (end - begin)
            │      ●           ╵
            │                  ╵            ● every `frequency` steps the weights of smallest
    initial ┤  ●               ╵              magnitude are set to zero, and stay there
            └──┴───┴───┴───┴───┴──▶ step
             begin            end
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique

Scope = Literal["global", "layer"]


def polynomial_decay(
    step: int,
    *,
    initial_sparsity: float,
    final_sparsity: float,
    begin: int,
    end: int,
    power: float,
    frequency: int,
) -> float | None:
    """Sparsity to prune to at `step`, or None where the rule leaves the masks alone.

    TF-MOT's `PolynomialDecay`. The last update falls on the last multiple of `frequency` before
    `end`, so the final sparsity is reached only where `frequency` divides `end - begin`.
    """
    if not begin <= step <= end or (step - begin) % frequency:
        return None
    x = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return float(final_sparsity + (initial_sparsity - final_sparsity) * (1.0 - x) ** power)


def constant_sparsity(
    step: int, *, target_sparsity: float, begin: int, end: int, frequency: int
) -> float | None:
    """Sparsity to prune to at `step`, or None. TF-MOT's `ConstantSparsity`; end -1 is for ever."""
    if step < begin or (end != -1 and step > end) or (step - begin) % frequency:
        return None
    return target_sparsity


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that pruning may touch: of convolutions and linear layers, by parameter name.

    Biases and batch norms are under 2 % of a ResNet's bytes and carry its scale: never pruned.
    """
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad
    }


@torch.no_grad()
def magnitude_masks(weights: dict[str, Tensor], sparsity: float, scope: Scope) -> Memory:
    """Keeps the largest magnitudes: a bool mask per weight, False where it is pruned.

    Exactly `round((1 - sparsity) * n)` entries are True (TF-MOT's count), among all weights
    (`global`) or in each (`layer`). Weights that are zero already go first, so a growing sparsity
    never revives one.
    """
    if scope == "layer":
        return {name: _smallest_out(weight.abs(), sparsity) for name, weight in weights.items()}
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    pieces = _smallest_out(flat, sparsity).split([weight.numel() for weight in weights.values()])
    return {
        name: piece.view(weight.shape)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


def _smallest_out(magnitude: Tensor, sparsity: float) -> Tensor:
    flat = magnitude.flatten()
    pruned = flat.numel() - round((1 - sparsity) * flat.numel())
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.topk(pruned, largest=False, sorted=False).indices] = False
    return mask.view(magnitude.shape)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Memory) -> None:
    """Sets the pruned weights to zero."""
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        # masked_fill_ and not a product: a product would keep NaN and make -0.0.
        weights[name].masked_fill_(~mask, 0.0)


@dataclass(frozen=True, kw_only=True)
class Prune(Technique):
    """Prunes by magnitude while training.

    `begin` and `end` are shares of all steps, because a sweep varies the number of epochs;
    they are laid on the grid of `frequency`, so that the last update reaches `final_sparsity`
    exactly. One-shot pruning without retraining is `schedule="constant", begin=1.0`.
    """

    final_sparsity: float = 0.6
    """Share of zeros among the weights at the end."""
    initial_sparsity: float = 0.0
    """Share of zeros at `begin`, from which a polynomial schedule rises."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """polynomial: sparsity rises from `begin` to `end`; constant: all of it at `begin`."""
    begin: float = 0.1
    """Share of training after which the first weights are pruned."""
    end: float = 0.6
    """Share of training at which a polynomial schedule reaches `final_sparsity`."""
    power: float = 3.0
    """Exponent of the polynomial schedule."""
    frequency: int = 20
    """Steps between two updates of the masks."""
    scope: Scope = "global"
    """global: one threshold for all weights; layer: the same sparsity in every layer."""

    columns: ClassVar[Mapping[str, Column]] = {
        "sparsity": Column(
            float,
            "share",
            "Zeros among the weights that can be pruned; at the end, of the file.",
        ),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("zero3", "masks are of whole weights, of which a worker has a part; take zero2"),
        Apart(
            "zero3_offload", "masks are of whole weights, of which a worker has a part; take zero2"
        ),
        Apart(
            "pipeline",
            "the scope global compares the weights of all stages; take prune.scope layer",
            when=lambda experiment: experiment.prune.scope == "global",
            condition="prune.scope is global",
        ),
    )

    def __post_init__(self) -> None:
        for name in ("initial_sparsity", "final_sparsity"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: a sparsity lies in [0, 1)")
        if self.schedule == "polynomial" and self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"initial_sparsity {self.initial_sparsity} is above final_sparsity "
                f"{self.final_sparsity}: a pruned weight does not come back"
            )
        if not 0 <= self.begin <= 1 or not 0 <= self.end <= 1:
            raise ValueError(f"begin {self.begin}, end {self.end}: shares of training, in [0, 1]")
        if self.schedule == "polynomial" and self.begin >= self.end:
            raise ValueError(f"begin {self.begin} is not before end {self.end}: the ramp is empty")
        if self.frequency < 1:
            raise ValueError(f"frequency is {self.frequency}: prune every 1 step or more")
        if not self.power > 0:
            raise ValueError(f"power is {self.power}: it must be above 0")

    def sparsity_at(self, progress: Progress) -> float | None:
        """Sparsity to prune to after this step, or None where the masks stay."""
        begin = max(1, round(self.begin * progress.steps))
        if self.schedule == "constant":
            return constant_sparsity(
                progress.step,
                target_sparsity=self.final_sparsity,
                begin=begin,
                end=-1,
                frequency=self.frequency,
            )
        begin = min(begin, progress.steps - 1)  # a ramp has two ends, and reaches the second
        updates = max(1, round((self.end - self.begin) * progress.steps / self.frequency))
        # A short run may not hold one whole period: then it takes the steps that it has.
        frequency = min(self.frequency, max(1, progress.steps - begin))
        updates = min(updates, max(1, (progress.steps - begin) // frequency))
        return polynomial_decay(
            progress.step,
            initial_sparsity=self.initial_sparsity,
            final_sparsity=self.final_sparsity,
            begin=begin,
            end=begin + updates * frequency,
            power=self.power,
            frequency=frequency,
        )

    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        # Mask first: momentum has moved pruned weights (one SGD step made a 0.0 a -0.244), and
        # unmasked they would compete in the next choice of the smallest.
        apply_masks(model, memory)
        sparsity = self.sparsity_at(progress)
        if sparsity is not None:
            memory.update(magnitude_masks(prunable(model), sparsity, self.scope))
            apply_masks(model, memory)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        # A no-op after the last update; before it, what stopping now would have to store.
        apply_masks(model, magnitude_masks(prunable(model), self.final_sparsity, self.scope))

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        weights = prunable(model).values()
        total = sum(weight.numel() for weight in weights)
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return {"sparsity": zeros / total if total else math.nan}
