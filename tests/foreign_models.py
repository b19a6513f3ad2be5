"""Twenty small classifiers that are not ours, as factories (classes, image_size) -> nn.Module.

The first fourteen are torchvision's and timm's; the others are written as users write them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convnext(*, classes: int, image_size: int) -> nn.Module:
    return _timm("convnext_atto", classes, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64))


def efficientnet(*, classes: int, image_size: int) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [
        MBConvConfig(1, 3, 1, 16, 8, 1, 1.0, 1.0),
        MBConvConfig(4, 3, 2, 8, 16, 2, 1.0, 1.0),
        MBConvConfig(4, 5, 2, 16, 24, 1, 1.0, 1.0),
    ]
    return EfficientNet(blocks, dropout=0.0, num_classes=classes, last_channel=64)


def mobilenet_v3(*, classes: int, image_size: int) -> nn.Module:
    return _timm("mobilenetv3_small_050", classes)


def regnet(*, classes: int, image_size: int) -> nn.Module:
    return _timm("regnetx_002", classes)


def densenet(*, classes: int, image_size: int) -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(8, (2, 2, 2, 2), num_init_features=16, num_classes=classes)


def ghostnet(*, classes: int, image_size: int) -> nn.Module:
    return _timm("ghostnet_050", classes)


def resnet_v2(*, classes: int, image_size: int) -> nn.Module:
    """Its convolutions are standardized, its norms are of groups."""
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2([1, 1], (128, 256), classes, stem_chs=32, stem_type="fixed")


def vgg_bn(*, classes: int, image_size: int) -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    plan: list[str | int] = [16, "M", 32, "M", 32, "M"]
    model = VGG(make_layers(plan, batch_norm=True), num_classes=classes)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(128, 64), nn.ReLU(True), nn.Linear(64, classes))
    return model


def swin(*, classes: int, image_size: int) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=classes)


def beit(*, classes: int, image_size: int) -> nn.Module:
    """Its attention reads `qkv.weight` past the layer."""
    return _timm("beit_base_patch16_224", classes, img_size=image_size, **_transformer(8))


def deit_distilled(*, classes: int, image_size: int) -> nn.Module:
    name = "deit_tiny_distilled_patch16_224"
    return _timm(name, classes, img_size=image_size, **_transformer(8))


def mobilevit(*, classes: int, image_size: int) -> nn.Module:
    return _timm("mobilevit_xxs", classes)


def poolformer(*, classes: int, image_size: int) -> nn.Module:
    from timm.models.metaformer import MetaFormer

    settings = {"layer_scale_init_values": 1e-5, "use_mlp_head": False}
    return MetaFormer(depths=(1, 1), dims=(16, 32), num_classes=classes, **settings)


def mixer(*, classes: int, image_size: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(classes, image_size, patch_size=8, num_blocks=2, embed_dim=32)


class Tokens(nn.Module):
    """(B, D, H, W) -> (B, H W, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Pooled(nn.Module):
    """(B, N, D) -> (B, D), each token with a weight of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)


def cct(*, classes: int, image_size: int) -> nn.Module:
    """A compact convolutional transformer, as one Sequential."""
    layers = [nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True) for _ in range(2)]
    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Tokens()]
    return nn.Sequential(*stem, *layers, nn.LayerNorm(32), Pooled(32), nn.Linear(32, classes))


class Encoder(nn.Module):
    """Patches through an nn.TransformerEncoder, which has a fast path in evaluation."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.place = nn.Parameter(torch.zeros(1, (image_size // 8) ** 2, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(tokens).mean(1))


def encoder(*, classes: int, image_size: int) -> nn.Module:
    return Encoder(classes, image_size)


class Rows(nn.Module):
    """An image as a sequence of rows: a convolution along it, then an LSTM."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3 * image_size, 32, 3, padding=1)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(2, 3).flatten(1, 2)  # (B, 3 W, H)
        out, _ = self.lstm(F.relu(self.conv(rows)).transpose(1, 2))
        return self.head(out[:, -1])


def conv1d_lstm(*, classes: int, image_size: int) -> nn.Module:
    return Rows(classes, image_size)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.one, self.other = nn.Linear(32, 32), nn.Linear(32, 32)
        self.other.weight = self.one.weight
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).mean((2, 3))
        return self.head(F.relu(self.other(F.relu(self.one(x)))))


def tied(*, classes: int, image_size: int) -> nn.Module:
    return Tied(classes)


def conv_head(*, classes: int, image_size: int) -> nn.Module:
    """It classifies by a convolution, and has no linear layer."""
    return nn.Sequential(
        *_conv_norm(3, 16),
        *_conv_norm(16, 32, 2),
        nn.Conv2d(32, classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class HeadFirst(nn.Module):
    """Its classifier is registered before what it classifies."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(32, classes)
        self.hidden = nn.Linear(32, 32)
        self.features = nn.Sequential(*_conv_norm(3, 16), *_conv_norm(16, 32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.features(x).mean((2, 3)))))


def head_first(*, classes: int, image_size: int) -> nn.Module:
    return HeadFirst(classes)


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _transformer(patch: int) -> dict[str, Any]:
    return {"patch_size": patch, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _timm(name: str, classes: int, **settings: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=classes, **settings)
    return model


FACTORIES = {
    factory.__name__: factory
    for factory in (
        convnext,
        efficientnet,
        mobilenet_v3,
        regnet,
        densenet,
        ghostnet,
        resnet_v2,
        vgg_bn,
        swin,
        beit,
        deit_distilled,
        mobilevit,
        poolformer,
        mixer,
        cct,
        encoder,
        conv1d_lstm,
        tied,
        conv_head,
        head_first,
    )
}
