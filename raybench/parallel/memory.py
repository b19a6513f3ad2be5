"""The bytes that one worker holds, measured and in theory.

The storage of each live tensor is counted once: a sharded tensor counts as its part, a view as the
whole storage that it keeps alive. Between the steps of ZeRO with W workers, in units of the
parameters:

              parameters   gradients   AdamW's averages
    ddp           1            1             2
    zero1         1            1            2/W
    zero2         1           1/W           2/W
    zero3        1/W          1/W           2/W        (Rajbhandari et al. 2020, figure 1)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raybench.experiment import Experiment

HELD = ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "buffers_bytes")


def held(
    model: nn.Module, optimizer: torch.optim.Optimizer, beside: Iterable[Tensor] = ()
) -> dict[str, int]:
    """Bytes of this worker by kind, between the backward pass and the optimizer's step or after it.

    Args:
        beside: the strategy's own tensors; they count as buffers.
    """
    updated = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [*model.parameters()]
    states = optimizer.state.values()
    moments = [value for state in states for value in state.values() if torch.is_tensor(value)]
    return {
        "parameters_bytes": _bytes(parameters),
        "gradients_bytes": _bytes(p.grad for p in [*parameters, *updated] if p.grad is not None),
        "optimizer_bytes": _bytes(moments),
        "buffers_bytes": _bytes([*model.buffers(), *beside]),
    }


class Activations(torch.autograd.graph.saved_tensors_hooks):
    """Counts, inside this context, the bytes that autograd keeps for backward, except parameters.

    `bytes` is the amount at the end of the forward pass. A checkpointed block keeps only its input;
    the activations that it recomputes in the backward pass, one block at a time, do not count.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._found: dict[int, int] = {}
        self._inputs = inputs.untyped_storage().data_ptr()
        super().__init__(self._seen, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self._found.values())

    def _seen(self, tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, nn.Parameter) and not is_spread(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() != self._inputs:
                self._found[storage.data_ptr()] = storage.nbytes()
        return tensor


def theory(model: nn.Module, experiment: Experiment) -> dict[str, int | None]:
    """The theoretical bytes of one worker: those of `held` by kind, and of the activations.

    Args:
        model: the plain model; it may be on the meta device.
    """
    parallel, recipe = experiment.parallel, experiment.recipe
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    averages = 2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0)
    stage = int(parallel.strategy[4]) if parallel.strategy.startswith("zero") else 0
    share = [parameters / parallel.workers if stage >= n else parameters for n in (3, 2, 1)]
    states = [share[0], share[1], averages * share[2]]
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    if parallel.strategy == "powersgd" and parallel.workers > 1:
        buffers += parameters + sum(thin_bytes(p) for p in model.parameters())
    figures: dict[str, int | None] = {
        name: round(value) for name, value in zip(HELD, [*states, buffers], strict=True)
    }
    return figures | {"activations_bytes": _vit_activations(model, experiment)}


def thin_bytes(parameter: Tensor, rank: int = 4) -> int:
    """Bytes of PowerSGD's two thin matrices; 0 if they would not halve the matrix."""
    if parameter.ndim < 2:
        return 0
    rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
    thin = (rows + columns) * min(rank, rows, columns)
    return thin * parameter.element_size() if 2 * thin < rows * columns else 0


def _vit_activations(model: nn.Module, experiment: Experiment) -> int | None:
    """Activation bytes of timm's ViT in fp32 with fused attention; None for all other models.

    For T tokens of width D and a hidden width H, a block keeps: its input, the outputs of its two
    norms, queries, keys and values, the attention's result and the sum after it, T D each (8 in
    all); the hidden layer before and after its GELU, 2 T H; a mean and a deviation for each token
    and norm, 4 T; and a log-sum-exp for each head and token. A checkpointed block keeps its input.
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    recipe, parallel = experiment.recipe, experiment.parallel
    if recipe.precision != "fp32" or type(model) is not VisionTransformer:
        return None
    vit: Any = model
    if not all(type(block) is Block for block in vit.blocks):
        return None
    tokens = recipe.batch // parallel.workers * vit.pos_embed.shape[1]
    width, depth = vit.embed_dim, len(vit.blocks)
    hidden = vit.blocks[0].mlp.fc1.out_features
    heads = vit.blocks[0].attn.num_heads
    block = tokens * (8 * width + 2 * hidden + 4 + heads)
    if parallel.checkpointing:
        block = tokens * width
    # The last norm and its whole output; the head's input is a view of it.
    rest = tokens * (2 * width + 2)
    return int(4 * (depth * block + rest))


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor, so that this process holds only a part."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return part


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {}
    for tensor in tensors:
        local = local_part(tensor)
        storage = local.detach().untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
