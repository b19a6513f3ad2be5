"""Progressive resizing: training sees small images first, evaluation and the file never do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.progressive import Progressive, shrunk
from raybench.training.trainer import train


def test_the_drawn_schedule():
    progressive = Progressive(first=0.5, until=0.5)
    sides = [progressive.side_at(share / 8) for share in range(9)]
    assert sides == [0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("share", "side"), [(0.5, 16), (0.55, 16), (0.6, 20), (0.99, 32)])
def test_sides_are_multiples_of_4(share, side):
    assert shrunk(torch.rand(2, 3, 32, 32), share).shape == (2, 3, side, side)


def test_a_shrunk_image_keeps_its_mean_and_layout():
    x = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    small = shrunk(x, 0.5)
    assert torch.allclose(small.mean((2, 3)), x.mean((2, 3)), atol=0.03)
    assert small.is_contiguous(memory_format=torch.channels_last)


def test_only_training_sees_small_images():
    model = build("resnet20", classes=10, image_size=32)
    sides: list[int] = []
    progressive = Progressive(first=0.5, until=0.5)
    progressive.reshape(model)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    memory: dict[str, torch.Tensor] = {}
    for step in (0, 5):
        assert not progressive.restructure(model, Progress(step, 10), memory)
        model.train()(torch.zeros(2, 3, 32, 32))
        model.eval()(torch.zeros(2, 3, 32, 32))
    assert sides == [16, 32, 32, 32]
    assert progressive.measure(model, memory) == {"input_side": 1.0}


def test_a_model_of_one_size_is_refused_with_advice():
    with pytest.raises(ValueError, match="resnet20"):
        Progressive().reshape(build("vit32x2", classes=10, image_size=8))


def test_the_row_tells_the_side(tiny):
    sides = [e.metrics["input_side"] for e in train(replace(tiny, progressive=Progressive()))]
    assert sides == pytest.approx([0.625, 0.625 + 0.375 * 0.5 / 0.7])


@pytest.mark.parametrize("wrong", [{"first": 0.1}, {"first": 1.5}, {"until": 2.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Progressive(**wrong)
