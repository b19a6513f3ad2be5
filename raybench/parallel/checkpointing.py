"""Activation checkpointing: a block keeps only its input and is computed twice.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", with `torch.utils.checkpoint`,
non-reentrant. Parameters, names and results stay the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes the model's blocks discard their inner activations, in place.

    timm's models without batch norms use their own switch; with batch norms that switch would
    update running statistics twice. In all other models the blocks are the members of its stacks.

    Raises:
        ValueError: the model has no stack of blocks.
    """
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is not None and not any(isinstance(m, _BatchNorm) for m in model.modules()):
        switch(enable=True)
        return
    stacks = [m for m in model.children() if isinstance(m, nn.Sequential | nn.ModuleList)]
    # A single layer keeps its input anyway.
    blocks = [block for stack in stacks for block in stack if [*block.children()]]
    if not blocks:
        raise ValueError(
            f"parallel.checkpointing needs a model with stacks of blocks, but a "
            f"{type(model).__name__} has none: use a ViT or a ResNet, or turn it off"
        )
    for block in blocks:
        kind: Any = type(block)
        block.__class__ = _checkpointed(kind)  # parameters and their names stay


def twice(block: nn.Module, x: Tensor) -> Any:
    """The block's output, which the backward pass computes once more."""
    return _twice(block, block, x)


class Checkpointed(nn.Module):
    """A block that is computed twice in training. `checkpoint_blocks` makes its instances."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return _twice(self, super().forward, *inputs, **named)
        return super().forward(*inputs, **named)


@functools.cache  # one class for all blocks of a type
def _checkpointed(kind: type[Any]) -> type[nn.Module]:
    return type(f"Checkpointed{kind.__name__}", (Checkpointed, kind), {})


def _twice(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _norms_at_rest(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _norms_at_rest(block: nn.Module) -> Iterator[None]:
    """Freezes the running statistics of the block's batch norms."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
