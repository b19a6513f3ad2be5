"""The part of a model that a stage holds, under the names of the whole."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


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


def of_part(
    memory: dict[str, Tensor], own: Iterable[str], whole: Iterable[str]
) -> dict[str, Tensor]:
    """The entries of a memory that are of no other stage.

    An entry is of a tensor, or of a layer, whose name its own ends with after a blank, if not all
    of it is one.

    Args:
        own: names of this stage's tensors.
        whole: names of all tensors of the model.
    """
    own = set(own)
    others = set(whole) - own
    others |= {_layer(name) for name in others} - {_layer(name) for name in own}
    return {name: value for name, value in memory.items() if name.split(" ")[-1] not in others}


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]
