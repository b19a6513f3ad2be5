"""A model as a list of blocks that run one after another, so that a pipeline can cut it.

The blocks share the model's parameters and buffers, so training a block trains the model. Running
all blocks gives exactly the model's forward pass. No block modifies its input, which in a pipeline
comes from another stage. A pooling ends its block, for two reasons: the tensor to send is smaller;
and the gradient of a pooling has another memory format than the pooled tensor. A gradient that was
sent would lose that format, and kernels would sum it in another order.

Legend: B batch, C channels, H and W pixels, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks, from images to logits.

    Supports ResNets, VGGs, MobileNetV2, timm's ViTs and Mixers, and any `nn.Sequential`, whose
    children are its blocks.

    Raises:
        ValueError: the model is of another type.
    """
    if type(model) is nn.Sequential:
        return list(model)
    cut = CUTS.get(f"{type(model).__module__}.{type(model).__name__}")
    if cut is None:
        raise ValueError(
            f"the blocks of a {type(model).__name__} are unknown: a pipeline takes resnet18, "
            "resnet20, resnet44, vgg11 and their variants, mobilenet_v2, vit300 and its variants, "
            "or an nn.Sequential"
        )
    parts = cut(model)
    names(model, parts)
    return parts


def names(model: nn.Module, part: Iterable[nn.Module]) -> dict[str, str]:
    """Name in `nn.Sequential(*part)` -> name in the model, of every parameter and buffer.

    `part` are some of the model's blocks.
    """
    part_tensors = nn.Sequential(*part).state_dict(keep_vars=True)
    whole = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    return {name: whole[id(tensor)] for name, tensor in part_tensors.items()}


class Mean(nn.Module):
    """(B, C, H, W) -> (B, C), or with `dims` (1,) (B, N, D) -> (B, D)."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Tokens(nn.Module):
    """The first block of timm's ViT: (B, 3, H, W) -> (B, N, D), patches and class token."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed = vit.patch_embed
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed
        self.pos_drop, self.patch_drop, self.norm_pre = vit.pos_drop, vit.patch_drop, vit.norm_pre

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BND = self.patch_embed(x_BCHW)
        x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        return self.norm_pre(self.patch_drop(self.pos_drop(x_BND + self.pos_embed)))


class ClassToken(nn.Module):
    """(B, N, D) -> (B, D)."""

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND[:, 0]


def _own_resnet(model: Any) -> list[nn.Module]:
    stem = nn.Sequential(model.conv1, model.bn1, nn.ReLU(inplace=True))
    layers = [stem, *model.layer1, *model.layer2, *model.layer3]
    return [*_ending(layers, Mean(2, 3)), model.fc]


def _resnet(model: Any) -> list[nn.Module]:
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    layers = [stem, *model.layer1, *model.layer2, *model.layer3, *model.layer4]
    return [*_ending(layers, model.avgpool, nn.Flatten()), model.fc]


def _vgg(model: Any) -> list[nn.Module]:
    linear = isinstance(model.classifier, nn.Linear)  # `build` replaces it for small images
    head = [model.classifier] if linear else _by_layer(model.classifier)
    return [*_ending(_by_layer(model.features), model.avgpool, nn.Flatten()), *head]


def _mobilenet(model: Any) -> list[nn.Module]:
    pooling = (nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten())
    return [*_ending(list(model.features), *pooling), model.classifier]


def _vit(model: Any) -> list[nn.Module]:
    plain = (
        model.cls_token is not None
        and model.reg_token is None
        and model.pos_embed is not None
        and not (model.no_embed_class or model.dynamic_img_size)
        and model.attn_pool is None
        and model.global_pool == "token"
    )
    if not plain:
        raise ValueError(
            "a pipeline takes ViTs that classify by a class token and have one position "
            "embedding: vit300 and its variants, or vit_tiny_patch16_224 and its variants"
        )
    head = (model.norm, ClassToken(), model.fc_norm, model.head_drop, model.head)
    return _ending([Tokens(model), *model.blocks], *head)


def _mixer(model: Any) -> list[nn.Module]:
    if model.global_pool != "avg":
        raise ValueError("a pipeline takes only Mixers that average over the patches")
    return _ending([model.stem, *model.blocks], model.norm, Mean(1), model.head_drop, model.head)


def _ending(layers: Sequence[nn.Module], *tail: nn.Module) -> list[nn.Module]:
    """The layers, with `tail` appended to the block of the last one."""
    return [*layers[:-1], nn.Sequential(layers[-1], *tail)]


def _by_layer(layers: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Each convolution or linear layer with the layers up to the next one: norms, in-place ReLUs
    and poolings."""
    groups: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear) or not groups:
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups]


CUTS: dict[str, Callable[[Any], list[nn.Module]]] = {
    # Classes by name: importing torchvision alone costs a second per process.
    "raybench.models.resnet_cifar.ResNetCifar": _own_resnet,
    "torchvision.models.resnet.ResNet": _resnet,
    "torchvision.models.vgg.VGG": _vgg,
    "torchvision.models.mobilenetv2.MobileNetV2": _mobilenet,
    "timm.models.vision_transformer.VisionTransformer": _vit,
    "timm.models.mlp_mixer.MlpMixer": _mixer,
}
