"""The part of a model that a stage holds, under its names in the whole model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def part_of(model: nn.Module, kept_names: Iterable[str]) -> nn.Module:
    """Removes the parameters and buffers whose names are not in `kept_names`, in place.

    Modules that lose all of theirs become `nn.Identity`. Hooks that look for layers then see only
    those of the stage, and the memory of the others is freed.
    """
    kept_names = set(kept_names)
    for name, child in list(model.named_children()):
        inside = [n.removeprefix(f"{name}.") for n in kept_names if n.startswith(f"{name}.")]
        if inside:
            part_of(child, inside)
        elif any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
            setattr(model, name, nn.Identity())
    for held in (model._parameters, model._buffers):
        for name in held:
            if name not in kept_names:
                held[name] = None
    return model


def of_part(
    memory: dict[str, Tensor], stage_names: Iterable[str], whole: Iterable[str]
) -> dict[str, Tensor]:
    """The entries of a memory that belong to no other stage.

    An entry's name is that of a tensor or a layer, or ends with a space and that name.

    Args:
        stage_names: names of this stage's tensors.
        whole: names of all tensors of the model.
    """
    stage_names = set(stage_names)
    others = set(whole) - stage_names
    others |= {_layer(name) for name in others} - {_layer(name) for name in stage_names}
    return {name: value for name, value in memory.items() if name.split(" ")[-1] not in others}


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]
