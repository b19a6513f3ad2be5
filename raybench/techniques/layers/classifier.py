"""Classifier: the linear layers that compute a model's logits."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

HEADS = re.compile(r"heads?|head_dist|fc|classifier|classif|logits|output|out")
"""Usual names of a model's classifier, in torchvision, timm and most other code."""

SIZES = (32, 224, 64, 28, 8, 256)
"""Image sizes to run a model on if nothing else identifies its classifier."""


def classifier(model: nn.Module) -> set[str]:
    """Names of the linear layers that compute the logits: one, or two in a distilled model.

    Taken from timm's `get_classifier`; else the last layer under a usual name of a head; else the
    layer whose output is the model's; else the last layer.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return _by_timm(model, linear) or _by_name(linear) or _by_output(model) or set([*linear][-1:])


def _by_timm(model: nn.Module, linear: dict[str, nn.Linear]) -> set[str]:
    get = getattr(model, "get_classifier", None)
    if get is None:
        return set()
    try:
        given = get()
    except Exception:  # the method may need arguments, or fail
        return set()
    parts = [given] if isinstance(given, nn.Module) else list(given or ())
    heads = {id(m) for part in parts if isinstance(part, nn.Module) for m in part.modules()}
    return {name for name, layer in linear.items() if id(layer) in heads}


def _by_name(linear: dict[str, nn.Linear]) -> set[str]:
    """The last layer under each child of the model that has the name of a head."""
    last = {name.partition(".")[0]: name for name in linear}
    return {name for child, name in last.items() if HEADS.fullmatch(child)}


def _by_output(model: nn.Module) -> set[str]:
    twin = copy.deepcopy(model).eval()
    made: dict[int, str] = {}
    kept: list[Any] = []  # keeps the outputs alive, so that no id is reused
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear):

            def note(_: nn.Module, given: Any, y: Any, name: str = name) -> None:
                made[id(y)] = name
                kept.append(y)

            module.register_forward_hook(note)
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    for size in SIZES:
        try:
            with torch.no_grad():
                y = twin(torch.zeros(1, 3, size, size, device=device))
        except Exception:  # the model takes images of another size
            continue
        return {made[id(y)]} if id(y) in made else set()
    return set()
