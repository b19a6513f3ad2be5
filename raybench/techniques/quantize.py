"""Low-bit weights and activations, during training or after it (LSQ, Esser et al. 2020).

           plain training            │ rounded weights and inputs, steps learned
    ─────────────────────┬───────────┼──────────────────────────────────────────▶ step
                         ╰ observed ─╯                                          finish
                           16 steps  begin

`begin=1` is post-training quantization: the last steps are observed, and `finish` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique
from raybench.techniques.layers.bit_widths import BITS, choose, sensitivity
from raybench.techniques.layers.folded_norms import Norm, fold
from raybench.techniques.layers.held_steps import hold
from raybench.techniques.layers.learned_step import fit_input_grids
from raybench.techniques.layers.quantized_layers import (
    QuantizedLayer,
    chosen,
    quantizable,
    quantized_layers,
)
from raybench.techniques.layers.rounded_weights import is_whole, rounded_weights

OBSERVED_STEPS = 16
"""Steps before `begin` in which inputs and gradients are observed. Older observations would belong
to a network that has changed since. Grids fitted to one batch's inputs scatter by 24 % (4 bits,
median over ResNet-20's layers), the mean of 16 by 6 %."""

SEEN, SQUARED = "inputs seen by ", "squared gradient of "  # keys in the memory

SHARDS = "{} shards the weights, and a channel's step needs the whole channel; use ddp or zero1"


def _has_budget(experiment: Any) -> bool:
    return bool(experiment.quantize.budget_bytes)


def _before_monarch(experiment: Any) -> bool:
    """Whether Monarch would create layers in training after the first rounded step."""
    monarch, epochs = experiment.monarch, experiment.recipe.epochs
    changed = math.ceil(round(monarch.switch_at * epochs, 6)) / epochs
    late = monarch.mode != "from_scratch" and changed > 0
    return late and bool(experiment.quantize.begin <= changed)


@dataclass(frozen=True, kw_only=True)
class Quantize(Technique):
    """Trains with low-bit weights, and also rounds the inputs of plain layers.

    It rounds the weights of all convolutions and linear layers, attention, experts, Monarch and
    low-rank factors, except recurrent and standardized ones. It rounds the inputs of plain
    nn.Conv2d and nn.Linear. `bits=0` is the plain model.
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "weight_bits": Column(float, "bits", "Mean over the quantized weights; 32 before that."),
        "bits_by_layer": Column(
            str, "", "Bits of the quantized weights in order; 18x4 is eighteen weights of 4 bits."
        ),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("zero3", SHARDS.format("zero3")),
        Apart("zero3_offload", SHARDS.format("zero3_offload")),
        Apart("expert", "no worker has the steps of all experts; use ddp"),
        *(
            Apart(
                strategy,
                f"{strategy} frees gradients needed to divide the budget; set quantize.bits "
                "instead of budget_bytes, or use ddp",
                _has_budget,
                "quantize.budget_bytes is set",
            )
            for strategy in ("zero1", "zero2")
        ),
        Apart(
            "pipeline",
            "the budget is divided over all layers, but a stage has only some of them; set "
            "quantize.bits instead of budget_bytes",
            _has_budget,
            "quantize.budget_bytes is set",
        ),
        Apart(
            "monarch",
            "monarch would change layers that are already rounded; set quantize.begin after "
            "monarch.switch_at, or monarch.mode from_scratch",
            _before_monarch,
            "quantize.begin is not after the epoch in which monarch changes layers",
        ),
    )

    bits: int = 8
    """Bits of weights: 2 to 8."""
    activation_bits: int = 8
    """Bits of layer inputs: 2 to 8, or 32, which leaves them in floating point."""
    ends_bits: int = 8
    """Bits of the first convolution and the last linear layer, for weights and inputs."""
    begin: float = 0.5
    """Share of training after which the model is quantized; 1 quantizes after training."""
    budget_bytes: int = 0
    """Bytes of all quantized weights, before entropy coding. It replaces `bits`: layers between the
    ends get bits by their sensitivity. 0: each layer has `bits`."""

    compiles: ClassVar[bool] = False  # its layers read their bits on the host

    def __post_init__(self) -> None:
        for name, also in (("bits", 0), ("activation_bits", 32), ("ends_bits", 8)):
            value = getattr(self, name)
            if value not in BITS and value != also:
                other = {"bits": ", or 0 for the plain model", "activation_bits": ", or 32"}
                raise ValueError(f"{name} is {value}: 2 to 8{other.get(name, '')}")
        if not 0 <= self.begin <= 1:
            raise ValueError(f"begin is {self.begin}: a share of training, in [0, 1]")
        if self.budget_bytes < 0:
            raise ValueError(f"budget_bytes is {self.budget_bytes}: it must not be negative")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Quantize, ...]:
        return tuple(cls(bits=bits) for bits in (8, 4, 3))

    @property
    def active(self) -> bool:
        return bool(self.bits)

    def reshape(self, model: nn.Module) -> None:
        if not self.bits:
            return
        self._extend(model)
        weights = list(rounded_weights(model).values())
        if not weights:
            raise ValueError(
                f"a {type(model).__name__} has no layer that quantize supports: a convolution, a "
                "linear or attention layer, experts, Monarch or low-rank factors"
            )
        # Set here, on the whole model, because a pipeline's stage has only a part of it.
        for module, attribute in (weights[0].holders[0], weights[-1].holders[0]):
            module.end_attributes = (*module.end_attributes, attribute)
        self._choices(model)  # raises at the start if the budget cannot be met

    def acts_on(self, model: nn.Module) -> list[str]:
        return list(rounded_weights(model))

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        if not self.bits:
            return False
        new = self._extend(model)
        changed = [weight.fit() for weight in rounded_weights(model).values()]
        self._watch(model, progress)
        return new or any(changed)

    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if not self.bits:
            return
        begin = self._begin(progress)
        if progress.step > begin:
            hold(model, memory)
        elif progress.step > begin - OBSERVED_STEPS:
            self._observe(model, memory)
            if progress.step == begin:
                self._quantize(model, memory)
                memory.clear()
                hold(model, memory)
        if progress.step <= begin:
            self._watch(model, progress)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        if not self.bits:
            return
        self.restructure(model, Progress(1, 1), memory)
        weights = rounded_weights(model).values()
        if not all(weight.bits for weight in weights):
            self._quantize(model, {})
        for weight in weights:
            weight.settle()
        for module in model.modules():
            if isinstance(module, QuantizedLayer):
                module.settle_input()
            if isinstance(module, Norm):
                fold(module)

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float | str]:
        """Mean bits of a weight, and the bits of all weights in order: `8 18x4 8`."""
        weights = rounded_weights(model).values()
        if not weights:
            return {}
        bits = [weight.bits or 32 for weight in weights]
        sizes = [weight.raw.numel() for weight in weights]
        runs = [(width, len(list(same))) for width, same in groupby(bits)]
        return {
            "weight_bits": sum(b * n for b, n in zip(bits, sizes, strict=True)) / sum(sizes),
            "bits_by_layer": " ".join(f"{n}x{b}" if n > 1 else f"{b}" for b, n in runs),
        }

    def plan(self, model: nn.Module, memory: Memory) -> dict[str, int]:
        """Bits of each weight. Raises ValueError: the budget is below the smallest possible.

        Without squared gradients in the memory, all weights count equally.
        """
        weights, choices = rounded_weights(model), self._choices(model)
        if not self.budget_bytes:
            return {name: bits for name, (bits,) in choices.items()}
        costs = [
            {b: sensitivity(w.raw, memory.get(SQUARED + n, 1.0), b, w.stacked) for b in choices[n]}
            for n, w in weights.items()
        ]
        sizes = [weight.raw.numel() for weight in weights.values()]
        return dict(zip(weights, choose(sizes, costs, 8 * self.budget_bytes), strict=True))

    def _extend(self, model: nn.Module) -> bool:
        """Makes all weights quantizable; returns whether any was not yet."""
        bits = self._expected_bits(model)
        return quantizable(model, bits=bits, activation_bits=self.activation_bits)

    def _quantize(self, model: nn.Module, memory: Memory) -> None:
        """Puts all weights and all observed inputs on their grids."""
        plan = self.plan(model, memory)
        for name, weight in rounded_weights(model).items():
            weight.quantize(plan[name])
        for layer in quantized_layers(model).values():
            layer.quantize_input(self._input_bits(layer))

    def _expected_bits(self, model: nn.Module) -> int:
        """Mean bits of the weights between the ends, which set the steps' learning rates."""
        sizes = [weight.value.numel() for weight in chosen(model)] if self.budget_bytes else []
        if len(sizes) < 3:
            return self.bits
        left = 8 * self.budget_bytes - self.ends_bits * (sizes[0] + sizes[-1])
        return min(BITS[-1], max(BITS[0], round(left / sum(sizes[1:-1]))))

    def _choices(self, model: nn.Module) -> dict[str, list[int]]:
        """The bits that each weight may have, fewest first. Raises ValueError as `plan` does."""
        weights = rounded_weights(model)
        inner = list(BITS) if self.budget_bytes else [self.bits]
        choices = {n: [self.ends_bits] if weight.end else inner for n, weight in weights.items()}
        least = sum(weight.raw.numel() * choices[name][0] for name, weight in weights.items())
        if 0 < 8 * self.budget_bytes < least:
            raise ValueError(
                f"budget_bytes is {self.budget_bytes}: the smallest possible is "
                f"{math.ceil(least / 8)}, 2 bits in all layers but the ends"
            )
        return choices

    def _input_bits(self, layer: QuantizedLayer) -> int:
        return self.ends_bits if layer.end_attributes else self.activation_bits

    def _begin(self, progress: Progress) -> int:
        """The step after which training is quantized; at most the last one."""
        return min(progress.steps, max(1, math.ceil(self.begin * progress.steps)))

    def _watch(self, model: nn.Module, progress: Progress) -> None:
        """Lets the layers keep their inputs in the next step if that step is observed."""
        begin = self._begin(progress)
        watching = begin - OBSERVED_STEPS <= progress.step < begin and self.activation_bits <= 8
        for layer in quantized_layers(model).values():
            layer.observing = watching

    @torch.no_grad()
    def _observe(self, model: nn.Module, memory: Memory) -> None:
        """Adds this step's inputs and gradients to the means in the memory."""
        for name, weight in rounded_weights(model).items() if self.budget_bytes else ():
            if (gradient := weight.raw.grad) is not None:
                sums = memory.get(SQUARED + name)
                if sums is None or sums.shape != gradient.shape:  # its channels were cut
                    sums = memory[SQUARED + name] = torch.zeros_like(gradient)
                sums.addcmul_(gradient, gradient)
        layers = quantized_layers(model)
        samples = {name: sample for name in layers if (sample := layers[name].sample()) is not None}
        if self.activation_bits > 8 or not samples:
            return
        bits = torch.tensor([self._input_bits(layers[name]) for name in samples])
        fitted = fit_input_grids(torch.stack([*samples.values()]), bits)
        grids = dict(zip(samples, torch.stack(fitted, 1), strict=True))
        zeros = next(iter(grids.values())).new_zeros(3)
        rows = [torch.cat([zeros[:1] + 1, grids[n]]) if n in grids else zeros for n in layers]
        sums = torch.stack(rows)
        if is_whole(model) and dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)  # otherwise the workers' grids would differ
        for (name, layer), row in zip(layers.items(), sums, strict=True):
            memory[SEEN + name] = total = row + memory.get(SEEN + name, 0.0)
            layer.take_grid(*total)
