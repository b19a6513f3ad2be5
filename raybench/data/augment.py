"""Augmentation of whole batches: cutout and mixup. Legend: B batch, S image side, K classes.

    images ─ crop, flip, normalise ─ cutout ─ mixup with the reversed batch ─▶

All random numbers are drawn for the whole batch from the given generator, so that each of several
workers has all of them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def middles(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and columns (count,) of the centres of `count` squares, anywhere in `size` pixels."""
    rows, columns = torch.randint(size, (2, count), generator=generator)
    return rows, columns


def cutout(x_BCSS: Tensor, row_B: Tensor, column_B: Tensor, side: int) -> None:
    """Sets a square of `side` pixels in each image to zero (the channel mean), in place.

    The square is clipped at the edges, so at least a quarter of it is inside (DeVries & Taylor
    2017, "Improved Regularization of Convolutional Neural Networks with Cutout", section 3.2). It
    begins `side // 2` pixels before the centre, as in their code. Their code rounds an odd side
    down to an even one: a side of 5 cuts 4 pixels there, and 5 here.
    """
    pixels = torch.arange(x_BCSS.shape[-1], device=x_BCSS.device)
    middle = torch.stack([row_B, column_B]).to(x_BCSS.device, non_blocking=True)
    first = middle.unsqueeze(-1) - side // 2
    y_BS, x_BS = ((pixels >= first) & (pixels < first + side)).to(x_BCSS.dtype)
    # x - x * 1 where both are inside: 0.13 ms for 128 images of 32 pixels on a core, while
    # `masked_fill_` takes 0.7 and an indexed fill 0.19. Images are channels last.
    flat = x_BCSS.permute(0, 2, 3, 1).view(*x_BCSS.shape[:1], len(pixels), -1)
    inside = y_BS.unsqueeze(2) * x_BS.repeat_interleave(x_BCSS.shape[1], 1).unsqueeze(1)
    flat.addcmul_(flat, inside, value=-1)


def mixing_share(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha): the share of an image in its mixture with another."""
    # torch's own Beta takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mixup(
    one: tuple[Tensor, Tensor], share: float, other: tuple[Tensor, Tensor], classes: int
) -> tuple[Tensor, Tensor]:
    """Mixes two batches: `share` of the first, the rest of the other; (B, C, S, S), (B, K).

    The other batch's images are overwritten. Zhang et al. 2018, "mixup: Beyond Empirical Risk
    Minimization", section 1; one share per batch, as in their code.
    """
    (x_BCSS, y_B), (x2_BCSS, y2_B) = one, other
    y_BK, y2_BK = (F.one_hot(labels, classes).float() for labels in (y_B, y2_B))
    return x2_BCSS.lerp_(x_BCSS, share), y2_BK.lerp_(y_BK, share)
