"""Small models that are not ours, for the tests of techniques that replace layers."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

CLASSES = 10


class Encoder(nn.Module):
    """torch's own encoder of patches, of which the head is registered first."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.head = nn.Linear(32, CLASSES)
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, activation, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BND = self.patches(x_BCHW).flatten(2).mT
        return self.head(self.encoder(x_BND).mean(1))


class Residual(nn.Module):
    """A block with its layers in itself, a residual around them, and a dropout."""

    def __init__(self, activation: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        h_BNH = self.activation(self.wide(self.norm(x_BND)))
        return x_BND + self.narrow(self.dropout(h_BNH))


class Functional(nn.Module):
    """Its activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.fc2(F.gelu(self.fc1(x_BND)))


class Stack(nn.Module):
    """Patches, blocks, mean and head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.blocks = nn.ModuleList(blocks)
        self.classify = nn.Linear(32, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BND = self.patches(x_BCHW).flatten(2).mT
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.classify(x_BND.mean(1))


def feed_forward(activation: nn.Module, dropout: float = 0.0) -> nn.Sequential:
    parts = (nn.Linear(32, 64), activation, nn.Dropout(dropout), nn.Linear(64, 32))
    return nn.Sequential(nn.LayerNorm(32), *parts, nn.Dropout(dropout))


def _timm(name: str, **values: object) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **values)


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 4),
    ),
    "swinv2": lambda: _timm(
        "swinv2_tiny_window8_256",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 4),
    ),
    "beit": lambda: _timm(
        "beit_base_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    ),
    "deit": lambda: _timm(
        "deit_tiny_distilled_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    ),
    "mobilevit": lambda: _timm("mobilevit_xxs"),
    "mixer": lambda: MlpMixer(
        num_classes=CLASSES, img_size=32, patch_size=8, embed_dim=32, num_blocks=2
    ),
    "convnext": lambda: _timm("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "torchvision_vit": lambda: torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=CLASSES,
    ),
    "torchvision_convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(16, None, 2)], num_classes=CLASSES
    ),
    "encoder": Encoder,
    "residual": lambda: Stack(Residual(nn.ReLU()), Residual(nn.Tanh())),
    "sequential": lambda: Stack(feed_forward(nn.GELU()), feed_forward(nn.ReLU(inplace=True))),
}
"""Images of 32 pixels to 10 classes, mobilevit's of any size."""


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32)
