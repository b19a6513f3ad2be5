"""Deferred weight gradients: a backward pass that computes the weights' gradients later.

Zero bubble sends a stage's input gradient before it computes the gradients that no stage waits for.
Convolutions and linear layers, which do nearly all of this work, append it to a list. All other
parameters, such as those of norms, get their gradients at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Work = list[Callable[[], None]]


def put_off(model: nn.Module, work: Work) -> None:
    """Makes the model's backward passes append their weights' gradients to `work`, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            module.__class__ = LaterConv2d  # parameters and their names stay
        elif type(module) is nn.Linear:
            module.__class__ = LaterLinear
        else:
            continue
        module.work = work  # type: ignore[assignment]


class LaterConv2d(nn.Conv2d):
    """A convolution whose backward pass computes only its input's gradient."""

    work: Work

    def forward(self, x_BCHW: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        if not torch.is_grad_enabled():
            return super().forward(x_BCHW)
        return _Convolve.apply(*_lowered(x_BCHW, self), self, self.weight)


class LaterLinear(nn.Linear):
    """A linear layer whose backward pass computes only its input's gradient."""

    work: Work

    def forward(self, x_ND: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x_ND)
        return _Multiply.apply(*_lowered(x_ND, self), self, self.weight)


def _lowered(x: Tensor, module: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias in autocast's dtype if it is on."""
    weight, bias = module.weight.detach(), module.bias
    bias = None if bias is None else bias.detach()
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


# Both functions also take the parameter, as their last argument. It requires a gradient even if the
# input, an image, does not, so autograd still runs the backward pass.


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: LaterConv2d, _: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module = module
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(
                x, weight, bias, module.stride, module.padding, module.dilation, module.groups
            )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), module = ctx.saved_tensors, ctx.module

        def gradients(*wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None if module.bias is None else [len(module.bias)],
                module.stride,
                module.padding,
                module.dilation,
                False,
                [0, 0],
                module.groups,
                wanted,
            )

        def later() -> None:
            _, of_weight, of_bias = gradients(False, True, module.bias is not None)
            _add(module.weight, of_weight)
            if module.bias is not None:
                _add(module.bias, of_bias)

        module.work.append(later)
        needed = ctx.needs_input_grad[0]
        return gradients(True, False, False)[0] if needed else None, None, None, None, None


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: LaterLinear, _: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module = module
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), module = ctx.saved_tensors, ctx.module

        def later() -> None:
            rows = grad.flatten(0, -2)
            _add(module.weight, rows.t() @ x.flatten(0, -2))
            if module.bias is not None:
                _add(module.bias, rows.sum(0))

        module.work.append(later)
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None, None, None


@torch.no_grad()
def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Accumulates a gradient in its parameter, as autograd does."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad += gradient.to(parameter.dtype)
