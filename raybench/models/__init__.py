"""Models by name: our own where no library has them, else torchvision's and timm's."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from raybench.experiment import nearest
from raybench.models.resnet_cifar import ResNetCifar

__all__ = ["build", "unfuse_attention"]

SMALL_IMAGES = 64  # up to this size, ImageNet's stem would throw most of the pixels away


def build(name: str, *, classes: int, image_size: int) -> nn.Module:
    """A plain module (B, 3, image_size, image_size) -> (B, classes) with fresh weights.

    `resnet20`, `resnet44` (any 6n + 2; with shortcut B as `resnet20_b`) are our own; `resnet18`,
    `vgg11` (any of their kin) and `mobilenet_v2` are torchvision's; every other name is timm's.
    Up to 64 pixels the stem keeps the resolution, and a ViT gets patches of 4 pixels.

    Raises:
        ValueError: no library has a model of that name; it names the nearest.
    """
    own = re.fullmatch(r"resnet(20|32|44|56|110)(_b)?", name)
    if own:
        return ResNetCifar(int(own[1]), classes, shortcut="B" if own[2] else "A")
    # The libraries are imported only here: torchvision alone costs a second per process.
    import torchvision.models as zoo

    if re.fullmatch(r"resnet(18|34|50)|vgg(11|13|16|19)(_bn)?|mobilenet_v2", name):
        model: nn.Module = zoo.get_model(name, weights=None, num_classes=classes)
        return _small_stem(name, model, classes) if image_size <= SMALL_IMAGES else model
    return _from_timm(name, classes, image_size)


def unfuse_attention(model: nn.Module) -> None:
    """Lets timm's attention multiply its matrices one by one.

    In bf16 on a CPU torch's flash kernel is slow, backward above all: unfused, a training step of
    ViT-Tiny with 65 tokens is 1.45 times as fast, one of ViT-S/16 with 197 tokens 1.2 times. In
    fp32 the fused kernel is 3 % ahead.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _small_stem(name: str, model: nn.Module, classes: int) -> nn.Module:
    """The usual changes for 32x32 images: first stride 1, no early pooling, one linear head."""
    if name.startswith("resnet"):
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif name.startswith("vgg"):
        # Five poolings leave 1x1: ImageNet's 7x7 average pooling would copy it 49 times.
        model.avgpool = nn.Identity()
        model.classifier = nn.Linear(512, classes)
    elif name == "mobilenet_v2":
        first = model.get_submodule("features.0.0")
        third = model.get_submodule("features.2.conv.1.0")
        for convolution in (first, third):
            convolution.stride = (1, 1)  # type: ignore[assignment]
    return model


def _from_timm(name: str, classes: int, image_size: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        known = ["resnet20", "resnet44", "resnet18", "vgg11", "mobilenet_v2", *timm.list_models()]
        raise ValueError(f"no model {name!r}; {nearest(name, known)}")
    settings: dict[str, Any] = {}
    if name.startswith(("vit_", "deit_", "mixer_")):
        settings["img_size"] = image_size
        if image_size <= SMALL_IMAGES and not name.startswith("mixer_"):
            settings["patch_size"] = 4
    return timm.create_model(name, num_classes=classes, **settings)
