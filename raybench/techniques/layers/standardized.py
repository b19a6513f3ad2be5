"""Convolutions that standardize their weight, changed so that a pruned weight stays pruned.

    parameter ─▶ mean 0, variance 1 (x gain) ─▶ 0 where the parameter is 0 ─▶ convolution
                                                                        settle() ─▶ parameter

Standardization subtracts the mean from every entry, also from zeros. Without the second arrow, a
zero in the parameter would not be a zero in the applied weight. Qiao et al. 2019, arXiv 1903.10520;
Brock et al. 2021, arXiv 2101.08692, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques.layers.host_numbers import number
from raybench.techniques.layers.weights import weights

WHOLE, ZEROS_COUNT, SETTLED = range(3)


class Standardized(nn.Conv2d):
    """One of timm's convolutions with the same parameters, and a buffer for their state."""

    weight_state: Tensor
    """uint8. WHOLE: as in timm; ZEROS_COUNT: zeros of the parameter are zeros of the applied
    weight; SETTLED: the parameter itself is applied, without standardization."""
    eps: float

    @property
    def zeros_count(self) -> bool:
        """Whether a zero in the parameter has an effect."""
        return bool(number(self.weight_state))

    def count_zeros(self) -> None:
        """From now on, zeros of the parameter are zeros of the applied weight. Not earlier, because
        some models start with all-zero weights, which must be able to learn."""
        if not self.zeros_count:
            self.weight_state.fill_(ZEROS_COUNT)

    @torch.no_grad()
    def settle(self) -> None:
        """Replaces the parameter by the applied weight."""
        self.weight.copy_(self.applied_weight())
        self.weight_state.fill_(SETTLED)

    def applied_weight(self) -> Tensor:
        """The weight (O, I / groups, …) that the convolution applies."""
        weight, state = self.weight, number(self.weight_state)
        if state == SETTLED:
            return weight
        gain = getattr(self, "gain", None)
        standardized = F.batch_norm(
            weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=None if gain is None else (gain * self.scale).view(-1),
            training=True,
            eps=self.eps,
        ).reshape_as(weight)
        return standardized.where(weight != 0, 0) if state == ZEROS_COUNT else standardized

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "same_pad", False):
            from timm.layers.padding import pad_same  # importing timm takes a second

            sizes = (list(self.kernel_size), list(self.stride), list(self.dilation))
            x = pad_same(x, *sizes)
        return self._conv_forward(x, self.applied_weight(), self.bias)


def standardize(model: nn.Module) -> None:
    """Makes every convolution that standardizes its weight a `Standardized` one, in place."""
    for weight in weights(model):
        module = weight.module
        if weight.kind == "standardized" and not isinstance(module, Standardized):
            kind = type(module)
            module.__class__ = type(f"Settling{kind.__name__}", (Standardized, kind), {})
            state = torch.tensor(WHOLE, dtype=torch.uint8, device=weight.value.device)
            module.register_buffer("weight_state", state)
