"""Activation checkpointing: a block keeps its input alone, and is computed twice.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", by `torch.utils.checkpoint`,
non-reentrant; parameters, names and results stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Lets the blocks of a timm model forget what is between their inputs and outputs.

    Raises:
        ValueError: the model has no blocks that can.
    """
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(
            f"parallel.checkpointing is for timm's models; {type(model).__name__} has no blocks "
            "that can be computed twice: take a ViT, or leave it off"
        )
    switch(enable=True)


class Checkpointed(nn.Module):
    """A block of a pipeline's stage, computed once more in its backward pass.

    Its state_dict is the block's own. Batch norms take their running statistics from the first
    computation alone.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._modules.update(block._modules)
        self._parameters.update(block._parameters)
        self._buffers.update(block._buffers)
        if scales := getattr(block, "lr_scale", None):
            self.lr_scale = scales
        self._block = [block]  # in a list, or it would be a child with names of its own

    def forward(self, x: Tensor) -> Tensor:
        (block,) = self._block

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _norms_at_rest(block)

        output: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return output

    def train(self, mode: bool = True) -> Checkpointed:
        self._block[0].train(mode)
        return super().train(mode)


@contextmanager
def _norms_at_rest(block: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of the block's batch norms as they are."""
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
