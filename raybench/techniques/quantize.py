"""Few bits for weights and activations, by training with them or after it (LSQ, Esser et al. 2020).

           plain training            │ rounded weights and inputs, steps learned
    ─────────────────────┬───────────┼──────────────────────────────────────────▶ step
                         ╰ observed ─╯                                          finish
                           16 steps  begin

`begin=1` is post-training quantization: observed are the last steps, and `finish` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique
from raybench.techniques.layers.bit_widths import BITS, choose, sensitivity
from raybench.techniques.layers.learned_step import fit_input_grids
from raybench.techniques.layers.quantized_layers import (
    KINDS,
    QuantizedLayer,
    quantizable,
    quantized_layers,
)

OBSERVED_STEPS = 16
"""Steps before `begin` in which inputs and gradients are observed: what is older is of a network
that has changed since. Grids fitted to one batch's inputs scatter by 24 % (4 bits, median over
ResNet-20's layers), the mean of 16 by 6 %."""

LARGEST_CHANGE = 0.1  # of a step, by one optimizer step

SEEN, SQUARED = "inputs seen", "squared gradient of "  # keys in the memory


@dataclass(frozen=True, kw_only=True)
class Quantize(Technique):
    """Trains with weights and activations of few bits, in every convolution and linear layer.

    `bits=0` is the plain model.
    """

    bits: int = 8
    """Of weights: 2 to 8."""
    activation_bits: int = 8
    """Of what enters a layer: 2 to 8, or 32, which leaves it in floating point."""
    ends_bits: int = 8
    """Of the first convolution and the last linear layer, weights and inputs."""
    begin: float = 0.5
    """Share of training after which it is quantized; 1 quantizes after training."""
    budget_bytes: int = 0
    """Bytes of all quantized weights, before any entropy coding, that the layers between the ends
    share by their sensitivity, in place of `bits`; 0: each has `bits`."""

    columns: ClassVar[Mapping[str, Column]] = {
        "weight_bits": Column(
            float, "bits", "Mean over the quantized weights; 32 until they are quantized."
        ),
        "bits_by_layer": Column(
            str,
            "bits",
            "Layers in a row of equal bits: `8 18x4 8` is one of 8, 18 of 4, 1 of 8.",
        ),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("zero3", "steps are of whole weights, of which a worker has a part; take zero2"),
        Apart(
            "zero3_offload", "steps are of whole weights, of which a worker has a part; take zero2"
        ),
        *(
            Apart(
                other,
                "budget_bytes needs the gradients of all layers in one place; take bits",
                when=lambda experiment: experiment.quantize.budget_bytes > 0,
                condition="quantize.budget_bytes is set",
            )
            for other in ("zero1", "zero2", "pipeline")
        ),
    )

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

    @property
    def active(self) -> bool:
        return bool(self.bits)

    def reshape(self, model: nn.Module) -> None:
        if not self.bits:
            return
        quantizable(model, bits=self._expected_bits(model), activation_bits=self.activation_bits)
        if not quantized_layers(model):
            raise ValueError(f"a {type(model).__name__} has no layer that quantize knows")
        self._choices(model)  # a budget that cannot be met is told at the start

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        self._watch(model, progress)
        changed = [layer.fit_to_weight() for layer in quantized_layers(model).values()]
        return any(changed)

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
            hold(quantized_layers(model), memory)
        elif progress.step > begin - OBSERVED_STEPS:
            self._observe(model, memory)
            if progress.step == begin:
                for name, bits in self.plan(model, memory).items():
                    layer = quantized_layers(model)[name]
                    layer.quantize_weight(bits)
                    layer.quantize_input(self._input_bits(model, name))
                memory.clear()
                hold(quantized_layers(model), memory)
        self._watch(model, progress)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        self.restructure(model, Progress(1, 1), memory)
        layers = quantized_layers(model)
        if not all(layer.weight_bits for layer in layers.values()):
            for name, bits in self.plan(model, {}).items():
                layers[name].quantize_weight(bits)
                layers[name].quantize_input(self._input_bits(model, name))
        for layer in layers.values():
            layer.settle()
        for module in model.modules() if layers else ():
            if isinstance(module, nn.BatchNorm2d):
                fold(module)

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float | str]:
        """Mean bits of a weight, and how many layers in a row have how many: `8 18x4 8`."""
        layers = quantized_layers(model).values()
        if not layers:
            return {}
        bits = [int(layer.weight_bits) or 32 for layer in layers]
        sizes = [layer.weight.numel() for layer in layers]
        runs = [(width, len(list(same))) for width, same in groupby(bits)]
        return {
            "weight_bits": sum(b * n for b, n in zip(bits, sizes, strict=True)) / sum(sizes),
            "bits_by_layer": " ".join(f"{n}x{b}" if n > 1 else f"{b}" for b, n in runs),
        }

    def plan(self, model: nn.Module, memory: Memory) -> dict[str, int]:
        """Bits of each layer's weight. Raises ValueError: the budget is below the least possible.

        Without squared gradients in the memory every weight counts alike.
        """
        layers, choices = quantized_layers(model), self._choices(model)
        if not self.budget_bytes:
            return {name: bits for name, (bits,) in choices.items()}
        costs = [
            {b: sensitivity(layer.weight, memory.get(SQUARED + n, 1.0), b) for b in choices[n]}
            for n, layer in layers.items()
        ]
        sizes = [layer.weight.numel() for layer in layers.values()]
        return dict(zip(layers, choose(sizes, costs, 8 * self.budget_bytes), strict=True))

    def _expected_bits(self, model: nn.Module) -> int:
        """Bits of a weight between the ends, in the mean: the steps' learning rates go by them."""
        plain = [module for module in model.modules() if type(module) in KINDS]
        sizes = [module.get_parameter("weight").numel() for module in plain]
        if not self.budget_bytes or len(sizes) < 3:
            return self.bits
        left = 8 * self.budget_bytes - self.ends_bits * (sizes[0] + sizes[-1])
        return min(BITS[-1], max(BITS[0], round(left / sum(sizes[1:-1]))))

    def _choices(self, model: nn.Module) -> dict[str, list[int]]:
        """The bits that each layer may have, the fewest first. Raises ValueError, as `plan`."""
        layers, ends = quantized_layers(model), self._ends(model)
        inner = list(BITS) if self.budget_bytes else [self.bits]
        choices = {name: [self.ends_bits] if name in ends else inner for name in layers}
        least = sum(layer.weight.numel() * choices[name][0] for name, layer in layers.items())
        if 0 < 8 * self.budget_bytes < least:
            raise ValueError(
                f"budget_bytes is {self.budget_bytes}: the smallest possible is "
                f"{math.ceil(least / 8)}, 2 bits in all layers but the ends"
            )
        return choices

    def _ends(self, model: nn.Module) -> set[str]:
        names = list(quantized_layers(model))
        return {*names[:1], *names[-1:]}

    def _input_bits(self, model: nn.Module, name: str) -> int:
        return self.ends_bits if name in self._ends(model) else self.activation_bits

    def _begin(self, progress: Progress) -> int:
        """The step after which training is quantized, or that is the last."""
        return min(progress.steps, max(1, math.ceil(self.begin * progress.steps)))

    def _watch(self, model: nn.Module, progress: Progress) -> None:
        """Lets the layers keep what enters them in the next step, where that is to be observed."""
        begin = self._begin(progress)
        watching = begin - OBSERVED_STEPS <= progress.step < begin and self.activation_bits <= 8
        for layer in quantized_layers(model).values():
            layer.observing = watching

    @torch.no_grad()
    def _observe(self, model: nn.Module, memory: Memory) -> None:
        """Adds this step's inputs and gradients to the means in the memory."""
        layers = quantized_layers(model)
        if self.budget_bytes:
            for name, layer in layers.items():
                if (gradient := layer.weight.grad) is not None:
                    sums = memory.get(SQUARED + name)
                    if sums is None or sums.shape != gradient.shape:  # its channels were cut
                        sums = memory[SQUARED + name] = torch.zeros_like(gradient)
                    sums.addcmul_(gradient, gradient)
        samples = {name: sample for name in layers if (sample := layers[name].sample()) is not None}
        if self.activation_bits > 8 or not samples:
            return
        bits = torch.tensor([self._input_bits(model, name) for name in samples])
        fitted = fit_input_grids(torch.stack([*samples.values()]), bits)
        found = dict(zip(samples, torch.stack(fitted, 1), strict=True))
        zeros = next(iter(found.values())).new_zeros(3)
        rows = [torch.cat([zeros[:1] + 1, found[n]]) if n in found else zeros for n in layers]
        sums = torch.stack(rows)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)  # or the workers' steps would part
        memory[SEEN] = sums + memory.get(SEEN, 0.0)
        for layer, (count, low, step) in zip(layers.values(), memory[SEEN], strict=True):
            if count and layer.input_step is not None:
                layer.input_step.copy_(step / count)
                layer.input_zero_point.copy_((-low / step).round())


@torch.no_grad()
def hold(layers: dict[str, QuantizedLayer], memory: Memory) -> None:
    """Holds every step within a tenth of what it was after the last optimizer step.

    A step is a scale, and one large gradient would make it 0 or negative: at a learning rate of 0.1
    that happened in the first quantized step, and the loss was NaN two steps later.
    """
    now = {
        f"{name}.{which}": step.detach()
        for name, layer in layers.items()
        for which, step in (("weight_step", layer.weight_step), ("input_step", layer.input_step))
        if step is not None
    }
    before = [memory.get(name, step) for name, step in now.items()]
    if all(old.shape == new.shape for old, new in zip(before, now.values(), strict=True)):
        steps = [*now.values()]
        torch._foreach_maximum_(steps, torch._foreach_mul(before, 1 - LARGEST_CHANGE))
        torch._foreach_minimum_(steps, torch._foreach_mul(before, 1 + LARGEST_CHANGE))
    memory.update({name: step.clone() for name, step in now.items()})


@torch.no_grad()
def fold(norm: nn.BatchNorm2d) -> None:
    """Two fp16 numbers a channel, the same in value to their rounding: y = weight * x + bias.

    The running statistics become 0 and 1 - eps, which say nothing any more, so that a file need
    not hold them.
    """
    mean, var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None or batches is None or not norm.affine:
        return
    scale = norm.weight * (var.double() + norm.eps).rsqrt()
    norm.bias.copy_((norm.bias - mean * scale).half())
    norm.weight.copy_(scale.half())
    mean.zero_()
    var.copy_(_one_less(norm.eps, var))
    batches.zero_()


def _one_less(eps: float, like: Tensor) -> Tensor:
    """The fp32 number that is 1 with `eps` added in fp32, or as near as one goes."""
    guess = torch.tensor(1 - eps, dtype=like.dtype)
    near = torch.stack([guess, *(torch.nextafter(guess, guess + way) for way in (-1, 1))])
    return near[(near + eps - 1).abs().argmin()]
