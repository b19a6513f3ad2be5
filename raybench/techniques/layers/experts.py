"""Many feed-forwards at the cost of one: rows sorted by expert, multiplied by `grouped_mm`.

    rows of tokens ─▶ │ expert 0      ··│ expert 1    ·│ expert 2       │   · row of zeros
                      └─────────────────┴──────────────┴────────────────┘
                      each group is padded to one of few sizes, multiples of ALIGN rows

The number of operations does not depend on the number of experts: nothing loops over them. Shape
suffixes: T tokens, N assignments of a token to an expert, E experts, D width, H hidden width, R
rows, P a padded width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques.layers.chain import chain_of

ALIGN = 16
"""Group sizes are multiples of this, except in fp32: groups of any size ran at 95 GFLOP/s in bf16,
groups of 16 n at 157 (304 x 1168, one core). The zeros cost 3 % at 64 experts of 260 tokens."""

SIZES = 16
"""Group sizes between two powers of two. oneDNN prepares a bf16 kernel for every new number of
rows: 1.1 ms each, as much as half of a product of 500 rows. A few sizes are soon all prepared. All
multiples of 16 would be 1,500 kernels up to 4,096 rows, and the cache holds 1,024."""

STRIDE_BYTES = 16  # grouped_mm needs every stride to be a multiple of this


KEEP_INPUT = ("GeluBackward0", "SiluBackward0", "HardswishBackward0", "MishBackward0")
"""Activations whose output may be overwritten, because they save their input for the backward."""


class Experts(nn.Module):
    """E feed-forwards of two linear layers each, as stacked weights; initially copies of `dense`.

    `act` is between the layers: the activation, and a dropout if `dense` has one.

    `forward(x, expert)` with x (N, D) and expert (N,) returns (N, D): row n is the output of expert
    `expert[n]` for row n.
    """

    weight1: Tensor  # (E, H, D)
    bias1: Tensor  # (E, H)
    weight2: Tensor  # (E, D, H)
    bias2: Tensor  # (E, D)

    def __init__(self, dense: nn.Module, experts: int) -> None:
        super().__init__()
        layers = chain_of(dense)
        self.act = copy.deepcopy(layers.between)
        for number, layer in (("1", layers.first), ("2", layers.second)):
            for kind in ("weight", "bias"):
                value = layer.get_parameter(kind).detach()
                stacked = value.expand(experts, *value.shape).clone()
                self.register_parameter(f"{kind}{number}", nn.Parameter(stacked))

    def __len__(self) -> int:
        return len(self.bias1)

    def draw(self) -> None:
        """Gives every expert its own random weights, with the standard deviation of the copies."""
        for weight in (self.weight1, self.weight2):
            nn.init.trunc_normal_(weight, std=float(weight[0].detach().std()))

    def forward(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        width, hidden = x_ND.shape[1], self.bias1.shape[1]
        slot_N, ends_E, rows = _slots(expert_N, len(self), exact=x_ND.dtype == torch.float32)
        unit = STRIDE_BYTES // x_ND.element_size()
        d, h, out = (n + -n % unit for n in (width + 1, hidden + 1, width))
        x_RP = _Placed.apply(x_ND, slot_N, rows, d)
        h_RP = self.act(_Linear.apply(x_RP, self.weight1, self.bias1, ends_E, h))
        h_RP = _with_ones(h_RP, hidden)
        y_RP = _Linear.apply(h_RP, self.weight2, self.bias2, ends_E, out)
        return _Taken.apply(y_RP, slot_N, width)


def _with_ones(h_RP: Tensor, column: int) -> Tensor:
    """The activations with ones in a column of padding, in place where that is possible."""
    if torch.compiler.is_compiling():  # `mark_dirty` would cut the graph
        ones_P = torch.arange(h_RP.shape[1], device=h_RP.device) == column
        return torch.where(ones_P, 1.0, h_RP)
    if h_RP.grad_fn is not None and h_RP.grad_fn.name() not in KEEP_INPUT:
        h_RP = h_RP.clone()  # the activation's backward needs its unchanged output
    ones: Tensor = _WithOnes.apply(h_RP, column)
    return ones


def loads(expert_N: Tensor, experts: int) -> Tensor:
    """Assignments of each expert, (E,). A bincount would wait for the GPU."""
    zeros_E = torch.zeros(experts, dtype=torch.long, device=expert_N.device)
    return zeros_E.scatter_add_(0, expert_N, torch.ones_like(expert_N))


def _filled(count_E: Tensor) -> Tensor:
    """The smallest group sizes that hold these numbers of rows."""
    octave_E = torch.frexp(count_E.clamp(min=1).float()).exponent  # count < 2 ** octave
    step_E = (2 ** (octave_E - 1).long() // SIZES).clamp(min=ALIGN)
    return (count_E + step_E - 1) // step_E * step_E


def _slots(expert_N: Tensor, experts: int, exact: bool) -> tuple[Tensor, Tensor, int]:
    """Each assignment's row among rows sorted by expert, each expert's end, and the total rows.

    With `exact` there are no padding rows between the experts.
    """
    order_N = torch.sort(expert_N, stable=True).indices
    count_E = loads(expert_N, experts)
    filled_E = count_E if exact else _filled(count_E)
    ends_E = filled_E.cumsum(0)
    # Sorted assignment i is at i, plus the padding before its expert.
    shift_E = (ends_E - filled_E) - (count_E.cumsum(0) - count_E)
    slot_N = torch.empty_like(order_N)
    slot_N[order_N] = torch.arange(len(order_N), device=order_N.device) + shift_E[expert_N[order_N]]
    # The exact number of rows is on the device; on a GPU we use an upper bound and do not wait.
    most = len(expert_N) + len(expert_N) // SIZES + experts * ALIGN
    if exact:
        rows = len(expert_N)
    else:
        rows = int(ends_E[-1]) if expert_N.device.type == "cpu" else most // ALIGN * ALIGN
    return slot_N, ends_E.to(torch.int32), rows


class _Linear(torch.autograd.Function):
    """Rows (R, P) through their expert's linear layer: weight (E, A, B), bias (E, A); (R, height).

    grouped_mm has no bias and needs strides of whole STRIDE_BYTES. So the weights are packed with
    padding, and the bias is in the column where the rows have a one. The backward pass packs them
    again: keeping the copies of six mixtures of 64 experts would take 0.5 GB in bf16.
    """

    @staticmethod
    def forward(
        ctx: Any, x_RP: Tensor, weight: Tensor, bias: Tensor, ends_E: Tensor, height: int
    ) -> Tensor:
        ctx.save_for_backward(x_RP, weight, bias, ends_E)
        ctx.height = height
        packed = _packed(weight, bias, height, x_RP)
        return F.grouped_mm(x_RP, packed.transpose(1, 2), offs=ends_E)

    @staticmethod
    def backward(ctx: Any, grad_RA: Tensor) -> tuple[Tensor | None, ...]:
        x_RP, weight, bias, ends_E = ctx.saved_tensors
        (a, b), grad_RA = weight.shape[1:], grad_RA.contiguous()
        rows = F.grouped_mm(grad_RA, _packed(weight, bias, ctx.height, x_RP), offs=ends_E)
        stack = F.grouped_mm(grad_RA.T, x_RP, offs=ends_E)
        # Contiguous, so that autograd uses it as `.grad` without another copy.
        of_weight = stack[:, :a, :b].to(weight.dtype, memory_format=torch.contiguous_format)
        return rows, of_weight, stack[:, :a, b].to(bias.dtype), None, None


def _packed(weight: Tensor, bias: Tensor, height: int, x_RP: Tensor) -> Tensor:
    """(E, height, P): weight (E, A, B) in the dtype of the rows, bias in column B, then zeros."""
    experts, a, b = weight.shape
    packed = x_RP.new_empty(experts, height, x_RP.shape[1])
    packed[:, :a, :b] = weight
    packed[:, :a, b] = bias
    packed[:, :a, b + 1 :] = 0
    packed[:, a:] = 0
    return packed


class _Placed(torch.autograd.Function):
    """Zeros (rows, padded), with `x[n]` and a one after it in row `slot[n]`; slots are unique."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, slot_N: Tensor, rows: int, padded: int) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.width = width = x_ND.shape[1]
        placed = x_ND.new_zeros(rows, padded)
        placed[:, width] = 1  # in padding rows too, because no gradient comes back from them
        placed[:, :width].index_copy_(0, slot_N, x_ND)
        return placed

    @staticmethod
    def backward(ctx: Any, grad_RP: Tensor) -> tuple[Tensor | None, ...]:
        (slot_N,) = ctx.saved_tensors
        return grad_RP.index_select(0, slot_N)[:, : ctx.width], None, None, None


class _WithOnes(torch.autograd.Function):
    """Writes ones into a column of padding, in place."""

    @staticmethod
    def forward(ctx: Any, h_RH: Tensor, column: int) -> Tensor:
        ctx.mark_dirty(h_RH)
        h_RH[:, column] = 1
        return h_RH

    @staticmethod
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        return grad_RH, None  # the column's gradient goes to padding of the first weights


class _Taken(torch.autograd.Function):
    """The first `width` of `y[slot]`; slots are unique; rows between them get no gradient."""

    @staticmethod
    def forward(ctx: Any, y_RP: Tensor, slot_N: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.shape = y_RP.shape
        return y_RP[:, :width].index_select(0, slot_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        (slot_N,) = ctx.saved_tensors
        grad_RP = grad_ND.new_zeros(ctx.shape)
        grad_RP[:, : grad_ND.shape[1]].index_copy_(0, slot_N, grad_ND)
        return grad_RP, None, None
