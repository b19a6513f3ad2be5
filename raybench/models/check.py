"""Whether a model can be trained on these images, seen before anything is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raybench.models import build, imported, is_import_path, outline


def check(name: str, *, classes: int, image_size: int) -> None:
    """Builds a library's model without memory, one by import path whole, and tries that.

    Raises:
        ValueError: there is no such model, it has no trainable weight, or two images do not give
            logits (2, classes).
    """
    if not is_import_path(name):
        outline(name, classes=classes, image_size=image_size)
        return
    with torch.random.fork_rng(devices=[]):
        outline(name, classes=classes, image_size=image_size)  # a second module must be another
        model = build(name, classes=classes, image_size=image_size).eval()
        _check_weights(name, model)
        try:
            model = copy.deepcopy(model)  # as its evaluation and the count of operations have it
        except Exception as error:
            raise ValueError(
                f"copy.deepcopy fails on the model {name}: {imported.explained(error)}"
            ) from error
        try:
            with torch.no_grad():
                logits = model(torch.randn(2, 3, image_size, image_size))
        except Exception as error:
            raise ValueError(
                f"the model {name} does not take 2 images of {image_size} pixels, "
                f"(2, 3, {image_size}, {image_size}): {imported.explained(error)}"
            ) from error
    _check_logits(name, logits, classes)


def _check_weights(name: str, model: nn.Module) -> None:
    parameters = list(model.parameters())
    if any(is_lazy(parameter) for parameter in parameters):
        raise ValueError(f"the model {name} has lazy layers: give each its input's size")
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"the model {name} has no trainable weight: it needs a parameter with requires_grad"
        )


def _check_logits(name: str, logits: object, classes: int) -> None:
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model {name} returns {type(logits).__name__}: return the logits alone, a tensor "
            f"(images, {classes})"
        )
    shape = tuple(logits.shape)
    if len(shape) == 2 and shape[0] == 2 and shape[1] != classes:
        raise ValueError(
            f"the model {name} has {shape[1]} outputs, and the data has {classes} classes: give "
            "its last layer `classes` outputs"
        )
    if shape != (2, classes):
        raise ValueError(
            f"the model {name} gives {shape} for 2 images: it must be (2, {classes}), a logit a "
            "class"
        )
    if not logits.is_floating_point():
        raise ValueError(f"the model {name} gives {logits.dtype}: logits are floating-point")
