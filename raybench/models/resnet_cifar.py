"""ResNet-20 and ResNet-44 for 32x32 images (He et al. 2015, "Deep Residual Learning", section 4.2).

They are in no library. Legend: B batch, C channels, H and W pixels.

    image ─ conv 3x3, 16 ─ n blocks of 16 ─ n of 32, half size ─ n of 64, half size ─ mean ─ linear

6n + 2 layers have weights: n = 3 is ResNet-20, n = 7 is ResNet-44. Shortcut A (the paper's for
these images) pads channels with zeros and has no parameters; shortcut B is a 1x1 convolution. A
width of 2 doubles the channels everywhere: 32, 64, 128.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels."""

    fixed_channels = True  # `extra` would not follow if the channels around it were pruned

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, inside: int, outside: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "A":
            self.shortcut = PadShortcut(outside - inside)
        elif stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x_BCHW), inplace=True)


class ResNetCifar(nn.Module):
    """The network of `layers` = 6n + 2 weight layers; (B, 3, H, W) -> (B, classes)."""

    def __init__(self, layers: int, classes: int, shortcut: Shortcut = "A", width: int = 1) -> None:
        super().__init__()
        if (layers - 2) % 6:
            raise ValueError(f"layers is {layers}: it must be 6n + 2 (20, 32, 44, 56, …)")
        blocks = (layers - 2) // 6
        fine, middle, coarse = 16 * width, 32 * width, 64 * width
        self.conv1 = nn.Conv2d(3, fine, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fine)
        self.layer1 = _stage(fine, fine, blocks, 1, shortcut)
        self.layer2 = _stage(fine, middle, blocks, 2, shortcut)
        self.layer3 = _stage(middle, coarse, blocks, 2, shortcut)
        self.fc = nn.Linear(coarse, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.fc(x_BCHW.mean((2, 3)))


def _stage(inside: int, outside: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Module:
    first = Block(inside, outside, stride, shortcut)
    rest = (Block(outside, outside, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
