"""Tensors that a wire codec meets, and what it makes of them."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from raybench.parallel.pipeline.codec import SMALLEST, Codec

TILE = 64


low_bits = st.sampled_from([8, 4, 2])


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


seeds = st.integers(0, 2**31)


DEGENERATE = {
    "zero": torch.zeros(200),
    "constant": torch.full((200,), 0.7),
    "negative constant": torch.full((200,), -123.4),
    "denormals": torch.full((200,), 1e-40) * torch.arange(-100, 100),
    "smallest": torch.tensor([1e-45, -1e-45, 0.0] * 50),
    "huge": torch.tensor([3.4e38, -3.4e38, 1e30, 0.0] * 50),
    "huge constant": torch.full((130,), 3.4e38),
    "outlier": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([1e30])]),
    "tiny outlier": torch.cat([torch.ones(199), torch.tensor([-1e-30])]),
    "Inf": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([math.inf])]),
    "-Inf": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([-math.inf])]),
    "NaN": torch.cat([torch.tensor([math.nan]), torch.linspace(-1, 1, 199)]),
    "all NaN": torch.full((200,), math.nan),
    "both Inf": torch.tensor([math.inf, -math.inf] * 100),
    "one value": torch.tensor([0.3]),
    "empty": torch.zeros(0),
}


def drawn(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def there_and_back(codec: Codec, x: torch.Tensor, **how) -> torch.Tensor:
    message = codec.encode(x, **how)
    assert message.dtype == torch.uint8
    assert message.shape == (codec.message_bytes(x.shape, x.dtype),)
    y = codec.decode(message, x.shape, x.dtype)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return y


def steps(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Of each value the largest step that its tile's grid may have: range over 2^bits - 2."""
    flat = torch.zeros(-(-x.numel() // TILE) * TILE)
    flat[: x.numel()] = x.float().reshape(-1)
    tiles = flat.view(-1, TILE)
    length = tiles.amax(1).clamp(min=0) - tiles.amin(1).clamp(max=0)
    step = (length / (2**bits - 2) * (1 + 2**-6)).clamp(min=SMALLEST)
    return step.repeat_interleave(TILE)[: x.numel()].view(x.shape)
