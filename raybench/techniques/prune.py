"""Magnitude pruning during training (Zhu & Gupta 2017, "To prune, or not to prune", section 3).

The rule is the same as in TensorFlow Model Optimization, step by step:

    sparsity
    final   ┤              ●   ●─────────   polynomial: final + (initial - final) * (1 - x) ** power
            │          ●       ╵            x = (step - begin) / (end - begin)
            │      ●           ╵
            │                  ╵            ● every `frequency` steps the weights of smallest
    initial ┤  ●               ╵              magnitude are set to zero, and stay zero
            └──┴───┴───┴───┴───┴──▶ step
             begin            end
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique
from raybench.techniques.layers.standardized import Standardized, standardize
from raybench.techniques.layers.weights import Weight, weights

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
    """Sparsity to prune to at `step`, or None if the masks stay unchanged.

    TF-MOT's `PolynomialDecay`. The last update is at the last multiple of `frequency` before `end`,
    so the final sparsity is reached only if `frequency` divides `end - begin`.
    """
    if not begin <= step <= end or (step - begin) % frequency:
        return None
    x = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return float(final_sparsity + (initial_sparsity - final_sparsity) * (1.0 - x) ** power)


def constant_sparsity(
    step: int, *, target_sparsity: float, begin: int, end: int, frequency: int
) -> float | None:
    """Sparsity to prune to at `step`, or None. TF-MOT's `ConstantSparsity`; end -1: no end."""
    if step < begin or (end != -1 and step > end) or (step - begin) % frequency:
        return None
    return target_sparsity


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that pruning may change, by parameter name: those of `layers.weights`.

    Biases, norms and embeddings are under 2 % of most models' bytes and set their scale, so they
    are never pruned. Nor are frozen weights, and weights in which a zero has no effect.
    """
    return {weight.name: weight.value for weight in _prunable(model)}


def _prunable(model: nn.Module) -> list[Weight]:
    return [
        weight
        for weight in weights(model)
        if weight.value.requires_grad
        and (weight.kind != "standardized" or isinstance(weight.module, Standardized))
    ]


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor], sparsity: float, scope: Scope, stacked: Collection[str] = ()
) -> Memory:
    """Keeps the largest magnitudes: a bool mask per weight, False where it is pruned.

    Exactly `round((1 - sparsity) * n)` entries are True, as in TF-MOT: among all weights
    (`global`), or in each weight (`layer`), where at least one entry stays. The weights named in
    `stacked` hold one matrix per index of their first axis, and `layer` counts within each matrix.
    Entries that are zero already are pruned first, so a growing sparsity never revives one.
    """
    if scope == "layer":
        return {
            name: _largest(weight.abs(), sparsity, len(weight) if name in stacked else 1, least=1)
            for name, weight in weights.items()
        }
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    sizes = [weight.numel() for weight in weights.values()]
    pieces = _largest(flat, sparsity, 1, least=0).split(sizes)
    return {
        name: piece.view(weight.shape)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


def _largest(magnitude: Tensor, sparsity: float, matrices: int, *, least: int) -> Tensor:
    """True at the largest entries of each matrix, of which at least `least` stay."""
    rows = magnitude.reshape(matrices, -1)
    size = rows.shape[1]
    kept = min(size, max(least, round((1 - sparsity) * size)))
    smallest = rows.topk(size - kept, dim=1, largest=False, sorted=False).indices
    mask = torch.ones_like(rows, dtype=torch.bool).scatter_(1, smallest, False)
    return mask.view(magnitude.shape)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Memory) -> None:
    """Sets the pruned weights to zero. Ignores masks of weights that the model does not have, or
    has in another shape."""
    if not masks:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is not None and parameter.shape == mask.shape:
            # masked_fill_, because a product would keep NaN and make -0.0.
            parameter.masked_fill_(~mask, 0.0)


def prune(model: nn.Module, sparsity: float, scope: Scope) -> Memory:
    """Prunes the model in place to a sparsity; returns the masks."""
    pruned = _prunable(model)
    for weight in pruned:
        if isinstance(weight.module, Standardized):
            weight.module.count_zeros()
    if not pruned:
        return {}
    stacked = [weight.name for weight in pruned if weight.stacked]
    masks = magnitude_masks({w.name: w.value for w in pruned}, sparsity, scope, stacked)
    apply_masks(model, masks)
    return masks


@dataclass(frozen=True, kw_only=True)
class Prune(Technique):
    """Prunes by magnitude while training.

    `begin` and `end` are shares of all steps, because a sweep varies the number of epochs. They
    are aligned to `frequency`, so that the last update reaches `final_sparsity` exactly. One-shot
    pruning without retraining is `schedule="constant", begin=1.0`.
    """

    final_sparsity: float = 0.6
    """Share of zeros among the weights at the end."""
    initial_sparsity: float = 0.0
    """Share of zeros at `begin`, where a polynomial schedule starts."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """polynomial: sparsity rises from `begin` to `end`; constant: the final sparsity at `begin`."""
    begin: float = 0.1
    """Share of training after which the first weights are pruned."""
    end: float = 0.6
    """Share of training at which a polynomial schedule reaches `final_sparsity`."""
    power: float = 3.0
    """Exponent of the polynomial schedule."""
    frequency: int = 20
    """Steps between two updates of the masks."""
    scope: Scope = "global"
    """global: prunes the smallest weights of the whole model; layer: prunes the same share of every
    matrix, where at least one weight stays."""

    columns: ClassVar[Mapping[str, Column]] = {
        "sparsity": Column(
            float, "share", "Share of zeros in the applied weights on which pruning acts."
        )
    }
    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(
                strategy,
                "a worker has only a part of each weight while training; use the strategy zero2",
            )
            for strategy in ("zero3", "zero3_offload")
        ),
        *(
            Apart(
                other,
                f"no {process} has all weights, among which the smallest are chosen; use "
                "prune.scope layer",
                when=lambda experiment: experiment.prune.scope == "global",
                condition="prune.scope is global",
            )
            for other, process in (("expert", "worker"), ("pipeline", "stage"))
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

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Prune, ...]:
        return tuple(cls(final_sparsity=sparsity) for sparsity in (0.5, 0.8, 0.9))

    def sparsity_at(self, progress: Progress) -> float | None:
        """Sparsity to prune to after this step, or None if the masks stay."""
        begin = max(1, round(self.begin * progress.steps))
        if self.schedule == "constant":
            return constant_sparsity(
                progress.step,
                target_sparsity=self.final_sparsity,
                begin=begin,
                end=-1,
                frequency=self.frequency,
            )
        begin = min(begin, progress.steps - 1)  # leave a step for the ramp to reach its end
        updates = max(1, round((self.end - self.begin) * progress.steps / self.frequency))
        # A run shorter than one period gets a shorter period.
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

    def acts_on(self, model: nn.Module) -> list[str]:
        return list(prunable(model))

    def reshape(self, model: nn.Module) -> None:
        standardize(model)

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        """Recomputes the masks if another technique has changed the layers. Returns False, because
        pruning itself changes none."""
        if memory and _shapes(memory) != _shapes(prunable(model)):
            back = range(progress.step, 0, -1)  # search backwards for the last update
            updates = (self.sparsity_at(Progress(n, progress.steps)) for n in back)
            sparsity = next(value for value in updates if value is not None)
            memory.clear()
            memory.update(prune(model, sparsity, self.scope))
        return False

    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        # Mask first: momentum has moved pruned weights (one SGD step turned 0.0 into -0.244), and
        # unmasked they would compete when the smallest weights are chosen.
        apply_masks(model, memory)
        sparsity = self.sparsity_at(progress)
        if sparsity is not None:
            memory.update(prune(model, sparsity, self.scope))

    def finish(self, model: nn.Module, memory: Memory) -> None:
        # In an average of the weights, masked weights are small but not zero; mask them first. The
        # second line changes nothing after the last update; before it, it prunes the model as if
        # training stopped now.
        apply_masks(model, memory)
        prune(model, self.final_sparsity, self.scope)
        for module in model.modules():
            if isinstance(module, Standardized):
                module.settle()

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        pruned = _prunable(model)
        total = sum(weight.value.numel() for weight in pruned)
        zeros = sum(
            int((weight.value == 0).sum())
            for weight in pruned
            if not isinstance(weight.module, Standardized) or weight.module.zeros_count
        )
        return {"sparsity": zeros / total if total else math.nan}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
