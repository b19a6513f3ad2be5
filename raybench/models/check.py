"""Checks before a run starts whether a model can be trained on these images."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raybench.models import build, imported, is_import_path, outline

SMALL = 2_000_000  # parameters; such a model is built in a few milliseconds


@cache
def check(name: str, *, classes: int, image_size: int) -> None:
    """Tries the model on two images: a library's on the meta device, one by import path in memory.

    A process checks each model once.

    Raises:
        ValueError: there is no such model, it has no trainable weight, or two images do not give
            logits (2, classes).
    """
    if not is_import_path(name):
        _check_size(name, classes, image_size)
        return
    with torch.random.fork_rng(devices=[]):
        outline(name, classes=classes, image_size=image_size)  # two calls must give two modules
        model = build(name, classes=classes, image_size=image_size).eval()
        _check_weights(name, model)
        try:
            model = copy.deepcopy(model)  # evaluation and operation counting need copies
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


def _check_size(name: str, classes: int, image_size: int) -> None:
    """Raises ValueError if a library's model needs larger images."""
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    sizes = outline(name, classes=classes, image_size=image_size).eval()
    # A small model is tried in memory: on the meta device a batch norm imports the compiler, 1 s.
    if sum(parameter.numel() for parameter in sizes.parameters()) > SMALL:
        try:
            with torch.no_grad():
                sizes(images)
            return
        except ValueError:
            raise
        except Exception:  # some layers have no meta kernel, but may work in memory
            pass
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build(name, classes=classes, image_size=image_size).eval()
        try:
            model(torch.zeros_like(images, device="cpu"))
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"the model {name} does not take images of {image_size} pixels "
                f"({str(error).splitlines()[0]}): use a larger --image-size"
            ) from error


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
            f"the model {name} has {shape[1]} outputs, but the data has {classes} classes: give "
            "its last layer `classes` outputs"
        )
    if shape != (2, classes):
        raise ValueError(
            f"the model {name} gives {shape} for 2 images: it must be (2, {classes}), one logit "
            "per class"
        )
    if not logits.is_floating_point():
        raise ValueError(f"the model {name} gives {logits.dtype}: logits are floating-point")
