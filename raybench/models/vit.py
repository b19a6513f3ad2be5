"""ViTs and Mixers of any width, built from timm's classes.

Dosovitskiy et al. 2021, section 3.1; Tolstikhin et al. 2021, section 2. Patches have 4 pixels up to
an image size of 64, else 16.
"""

from __future__ import annotations

from torch import nn

HEAD = 60
"""Smallest head dimension: gives 5 heads at width 300, and timm's numbers at 192 to 768."""


def build_vit(width: int, depth: int, *, classes: int, image_size: int) -> nn.Module:
    """(B, 3, image_size, image_size) -> (B, classes).

    The hidden layer has 3.9 times the width, in multiples of 16: with 12 blocks of width 300 that
    is 12.8 M parameters, the size of the reference project's ViT.
    """
    from timm.models.vision_transformer import VisionTransformer

    heads = max(n for n in range(1, width + 1) if width % n == 0 and n <= max(1, width // HEAD))
    hidden = max(16, round(3.9 * width / 16) * 16)
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch(image_size),
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=(hidden + 0.5) / width,  # timm truncates the product to a whole number
    )


def build_mixer(width: int, depth: int, *, classes: int, image_size: int) -> nn.Module:
    """(B, 3, image_size, image_size) -> (B, classes); 512x8 is Mixer-S, 768x12 Mixer-B."""
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(
        img_size=image_size,
        patch_size=patch(image_size),
        num_classes=classes,
        embed_dim=width,
        num_blocks=depth,
    )


def patch(image_size: int) -> int:
    """Pixels of a patch's side."""
    return 4 if image_size <= 64 else 16
