"""The part of a model that a stage holds, under the names of the whole."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def part_of(model: nn.Module, own: Iterable[str]) -> nn.Module:
    """The model without the parameters and buffers that are not `own`, in place.

    Modules that hold nothing else become `nn.Identity`, so hooks that look for layers see those of
    the stage alone, and the memory of the others is free.
    """
    own = set(own)
    for name, child in list(model.named_children()):
        inside = [n.removeprefix(f"{name}.") for n in own if n.startswith(f"{name}.")]
        if inside:
            part_of(child, inside)
        elif any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
            setattr(model, name, nn.Identity())
    for held in (model._parameters, model._buffers):
        for name in held:
            if name not in own:
                held[name] = None
    return model
