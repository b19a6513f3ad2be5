"""Models by name: torchvision's, timm's, and those that no library has; or by import path."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raybench.experiment import nearest
from raybench.models import imported
from raybench.models.resnet_cifar import ResNetCifar, Shortcut
from raybench.models.source import is_import_path, require_source, with_source
from raybench.models.vit import build_mixer, build_vit

__all__ = [
    "avoid_slow_bf16",
    "build",
    "is_import_path",
    "outline",
    "require_source",
    "with_source",
    "without_memory",
]

OWN = ("resnet20", "resnet44", "vit300", "mixer512x8")
MIXERS = {"mixer_s16_224": (512, 8), "mixer_b16_224": (768, 12)}  # width, depth
LARGEST_DEPTH, LARGEST_WIDTH = 200, 1 << 16  # because a file's header can name any model
SMALL_IMAGES = 64  # up to this size, ImageNet's stem would discard most of the pixels


def build(name: str, *, classes: int, image_size: int, pretrained: str = "") -> nn.Module:
    """A plain module (B, 3, image_size, image_size) -> (B, classes) with fresh weights.

    `resnet20`, `resnet44` (any 6n + 2; `resnet20x2` has twice the channels, `resnet20_b` and
    `resnet20x2_b` have shortcut B) are raybench's; `vit300` is a ViT of width 300 and 12 blocks,
    `mixer512x8` a Mixer of 8 blocks (any width and depth); `resnet18`, `vgg11` (any of their
    families) and `mobilenet_v2` are torchvision's; every other name is timm's. Up to 64 pixels the
    stem keeps the resolution, and patches have 4 pixels. `package.module:factory` is the user's own
    model, whose module is imported.

    `pretrained` loads timm's weights: "hub" downloads them, any other value is the path of their
    file. The head has fresh weights if the classes differ.

    Raises:
        ValueError: no library has a model of that name; the message suggests the nearest names.
    """
    for what, value in (("classes", classes), ("image_size", image_size)):
        if value < 1:
            raise ValueError(f"{what} is {value}: 1 or more")
    if is_import_path(name):
        if pretrained:
            raise ValueError(f"timm has no weights of {name}: load them in its factory")
        return imported.build(name, classes=classes, image_size=image_size)
    if pretrained:
        return _from_timm(name, classes, image_size, pretrained)
    cifar = re.fullmatch(r"resnet(20|32|44|56|110)(?:x([1-9]\d*))?(_b)?", name)
    if cifar:
        shortcut: Shortcut = "B" if cifar[3] else "A"
        return ResNetCifar(int(cifar[1]), classes, shortcut, width=int(cifar[2] or 1))
    sized = re.fullmatch(r"(vit|mixer)([1-9]\d*)(?:x([1-9]\d*))?", name)
    if sized:
        if int(sized[3] or 12) > LARGEST_DEPTH:
            raise ValueError(f"{name} has more than {LARGEST_DEPTH} blocks: use fewer")
        if int(sized[2]) > LARGEST_WIDTH:
            raise ValueError(f"{name} is wider than {LARGEST_WIDTH}: use a smaller width")
        make = build_vit if sized[1] == "vit" else build_mixer
        return make(int(sized[2]), int(sized[3] or 12), classes=classes, image_size=image_size)
    # The libraries are imported only here: torchvision alone takes a second per process.
    import torchvision.models as zoo

    if re.fullmatch(r"resnet(18|34|50)|vgg(11|13|16|19)(_bn)?|mobilenet_v2", name):
        model: nn.Module = zoo.get_model(name, weights=None, num_classes=classes)
        return _small_stem(name, model, classes) if image_size <= SMALL_IMAGES else model
    if name in MIXERS and image_size <= SMALL_IMAGES:  # timm's name fixes the patch
        return build_mixer(*MIXERS[name], classes=classes, image_size=image_size)
    return _from_timm(name, classes, image_size)


def outline(name: str, *, classes: int, image_size: int) -> nn.Module:
    """The model on the meta device: its shapes, without memory for its weights.

    If the user's factory fails on the meta device, the model has its weights in memory.

    Raises:
        ValueError: as for `build`.
    """
    if is_import_path(name):
        imported.factory_of(name)  # import first, so the file's own tensors are not meta tensors
    try:
        with without_memory(), warnings.catch_warnings():
            if is_import_path(name):
                warnings.simplefilter("ignore")  # about weights loaded into meta tensors
            return build(name, classes=classes, image_size=image_size)
    except ValueError:
        if not is_import_path(name):
            raise
        return build(name, classes=classes, image_size=image_size)


@contextmanager
def without_memory() -> Iterator[None]:
    """Models built in this context are on the meta device, without memory or random numbers."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Skips random initialization, which on the meta device imports the compiler (1 s)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWS and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


_DRAWS = {Tensor.normal_, Tensor.uniform_}


def avoid_slow_bf16(model: nn.Module) -> None:
    """Avoids two kernels that are slow in bf16 on a CPU, in place; the results stay the same.

    The first is torch's flash attention, mainly its backward pass: unfused, a training step of
    ViT-Tiny with 65 tokens is 1.45 times as fast, one of ViT-S/16 with 197 tokens 1.2 times. (In
    fp32 the fused kernel is 3 % faster.) The second is depthwise convolutions with a stride: the
    backward passes of MobileNetV2's three take 185, 100 and 172 ms at batch 64, in fp32 18, 5 and
    4; with them in fp32 its whole step is 1.6 times as fast.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
        if isinstance(module, nn.Conv2d) and not isinstance(module, InFp32):
            if module.groups == 1 or max(module.stride) == 1:
                continue
            # Parameters and their names stay; a quantized layer stays quantized.
            module.__class__ = _in_fp32(type(module))


class InFp32(nn.Conv2d):
    """A convolution that computes in fp32 under autocast; input and output keep their dtype."""

    def _conv_forward(self, x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(x_BCHW.device.type, enabled=False):
            bias = None if bias is None else bias.float()
            y_BCHW = super()._conv_forward(x_BCHW.float(), weight.float(), bias)
            return y_BCHW.to(x_BCHW.dtype)


def _in_fp32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return type(f"{kind.__name__}InFp32", (InFp32, kind), {})


def _small_stem(name: str, model: nn.Module, classes: int) -> nn.Module:
    """The usual changes for 32x32 images: a stride of 1, no early pooling, one linear head."""
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


def _from_timm(name: str, classes: int, image_size: int, pretrained: str = "") -> nn.Module:
    import timm

    if not timm.is_model(name):
        names = [*OWN, "resnet18", "vgg11", "mobilenet_v2", *timm.list_models()]
        path = " (your own model is package.module:factory)" if "." in name else ""
        raise ValueError(f"no model {name!r}; {nearest(name, names)}{path}")
    settings: dict[str, Any] = {}
    if name.startswith(("vit_", "deit_", "mixer_")):
        settings["img_size"] = image_size
        if image_size <= SMALL_IMAGES and not name.startswith("mixer_"):
            settings["patch_size"] = 4
    if not pretrained:
        return timm.create_model(name, num_classes=classes, **settings)
    if name in MIXERS and image_size <= SMALL_IMAGES:
        raise ValueError(f"the pretrained {name} has patches of 16 pixels: use image_size 224")
    settings["pretrained"] = True
    try:
        if pretrained != "hub":
            if not Path(pretrained).is_file():
                raise FileNotFoundError(f"there is no file {pretrained}")
            settings["pretrained_cfg_overlay"] = {"file": pretrained}
            stored = timm.models.load_state_dict(pretrained)
        model = timm.create_model(name, num_classes=classes, **settings)
    except Exception as error:  # from the hub, either file format, or a pickle
        raise ValueError(f"no pretrained weights of {name} from {pretrained}: {error}") from error
    if pretrained != "hub":
        # timm loads the weights with matching names and would leave the rest fresh.
        body = {n for n, _ in model.named_parameters() if not n.startswith(("head", "fc."))}
        missing = sorted(body - set(stored))
        if missing:
            raise ValueError(f"{pretrained} belongs to another model: it has no {missing[0]}")
    return model
