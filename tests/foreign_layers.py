"""Small networks of layers of every kind, on images of 8 x 8 pixels with 5 classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from raybench.models import build
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.switch import Switch

CLASSES = 5


class Doubled(nn.Linear):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Rows(nn.Module):
    """(B, 3, 8, 8) -> (B, 8, 24), a token a row of pixels."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.permute(0, 2, 1, 3).flatten(2)


class Encoder(nn.Module):
    """torch's own transformer, with its fast path in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.encoder(Rows()(x_BCHW)).mean(1))


class Attention(nn.Module):
    """Keys and values of another width: three input projections."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 2, kdim=12, vdim=12, batch_first=True)
        self.head = Doubled(24, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BND = Rows()(x_BCHW)
        keys = x_BND[..., :12]
        return self.head(self.attention(x_BND, keys, keys)[0].mean(1))


class Tied(nn.Module):
    """Two layers with one weight, one of which another module reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(24, 24), Doubled(24, 24)
        self.other.weight = self.one.weight
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.other(self.one(Rows()(x_BCHW)).relu()).relu()
        return self.head(F.linear(x, self.one.weight).mean(1))


def convolutions() -> nn.Module:
    """In three, one and two dimensions."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv3d(1, 4, 3, padding=1),
        nn.Flatten(3),
        nn.Flatten(1, 2),
        nn.Conv1d(12, 6, 3, padding=1),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Unflatten(2, (8, 8)),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    )


def vit(technique: Switch | Monarch | LowRank) -> nn.Module:
    model = build("vit32x2", classes=CLASSES, image_size=8)
    technique.reshape(model)
    return model


def beit() -> nn.Module:
    size = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return Beit(img_size=8, patch_size=4, num_classes=CLASSES, **size)


def swin() -> nn.Module:
    size = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    return SwinTransformerV2(img_size=8, patch_size=2, num_classes=CLASSES, **size)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutions,
    "encoder": Encoder,
    "attention": Attention,
    "tied": Tied,
    "experts": lambda: vit(Switch(experts=3, blocks="all")),
    "monarch": lambda: vit(Monarch(blocks=4)),
    "low_rank": lambda: vit(LowRank(blocks=4)),
    "beit": beit,
    "swin": swin,
}


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 8, 8)
