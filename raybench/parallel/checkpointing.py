"""Activation checkpointing: a block keeps its input alone, and is computed twice.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The blocks are timm's own, by
`torch.utils.checkpoint`, non-reentrant; parameters, names and results stay as they are.
"""

from __future__ import annotations

from torch import nn


def checkpoint_blocks(model: nn.Module) -> None:
    """Lets the model's blocks forget what is between their inputs and outputs.

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
