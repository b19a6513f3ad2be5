"""MLP-Mixers: their sizes, and images to logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.models import build
from raybench.training.measure import count_parameters


class TestMixers:
    @pytest.mark.parametrize(
        ("name", "image_size", "parameters", "tokens"),
        [
            ("mixer512x8", 32, 17_110_026, 64),
            ("mixer_s16_224", 32, 17_110_026, 64),
            ("mixer_b16_224", 224, 59_119_162, 196),
        ],
    )
    def test_sizes(self, name, image_size, parameters, tokens):
        with torch.device("meta"):
            model = build(name, classes=10, image_size=image_size)
            assert model(torch.empty(2, 3, image_size, image_size)).shape == (2, 10)
        assert count_parameters(model) == parameters
        assert model.blocks[0].mlp_tokens.fc1.in_features == tokens

    def test_a_small_one_maps_images_to_logits(self):
        model = build("mixer32x2", classes=7, image_size=8).eval()
        nn.init.normal_(model.head.weight)  # timm's is zero at first
        x = torch.randn(3, 3, 8, 8)
        logits = model(x)
        assert logits.shape == (3, 7)
        assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)  # no image sees another
        assert not torch.equal(logits[0], logits[1])
