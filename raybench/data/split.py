"""A split: some rows of an array of padded images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some rows of an array of padded images.

    `pixels` is (N, size + 2 pad, size + 2 pad, 3) of uint8; `labels` is (N,); `digests` (N,) of
    uint64 identify the images' content; `rows` are this split's indices into all three.
    """

    pixels: Tensor
    labels: Tensor
    digests: np.ndarray
    rows: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def its_digests(self) -> np.ndarray:
        """Digests of the split's images: (len,)."""
        return self.digests[self.rows.numpy()]

    @property
    def pad(self) -> int:
        return (self.pixels.shape[1] - self.size) // 2
