"""The factors of Monarch and low-rank layers: their first weights, sizes and costs."""

from __future__ import annotations

import copy

import pytest
import torch
from small_monarch import replaced
from torch import nn

from raybench.models import build
from raybench.techniques import Technique
from raybench.techniques.layers.monarch_linear import MonarchLinear
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch
from raybench.training.measure import count_flops, count_parameters

SIZES = [(192, 576, 4), (576, 192, 4), (256, 256, 8), (64, 1024, 2), (1024, 64, 4)]


def structured(dense: nn.Linear, blocks: int, kind: str) -> nn.Module:
    if kind == "monarch":
        return MonarchLinear(dense, blocks)
    return LowRankLinear(dense, min(dense.in_features, dense.out_features) // blocks)


@pytest.mark.parametrize("kind", ["monarch", "low_rank"])
class TestFirstWeights:
    @pytest.mark.parametrize("spread", [None, 0.02])
    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), SIZES)
    def test_outputs_have_the_spread_of_the_dense_layers(
        self, kind, inputs, outputs, blocks, spread
    ):
        dense = nn.Linear(inputs, outputs, bias=False)
        if spread:
            nn.init.normal_(dense.weight, std=spread)
        x = torch.randn(512, inputs)
        wanted = float(dense(x).detach().std())
        actual = structured(dense, blocks, kind)(x).detach()
        assert float(actual.std()) == pytest.approx(wanted, rel=0.1)
        for part in actual.chunk(blocks, dim=1):  # no block is louder than the others
            assert float(part.std()) == pytest.approx(wanted, rel=0.25)

    def test_the_bias_is_a_copy(self, kind):
        dense = nn.Linear(16, 32)
        layer = structured(dense, 2, kind)
        assert torch.equal(layer.bias, dense.bias)
        layer.bias.data.zero_()
        assert dense.bias.any()
        assert structured(nn.Linear(16, 32, bias=False), 2, kind).bias is None

    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), [*SIZES, (768, 3072, 4)])
    def test_parameters_of_both_kinds(self, kind, inputs, outputs, blocks):
        assert min(inputs, outputs) % blocks**2 == 0
        layer = structured(nn.Linear(inputs, outputs), blocks, kind)
        wanted = (inputs + outputs) * min(inputs, outputs) // blocks + outputs
        assert count_parameters(layer) == wanted

    def test_of_a_model_are_those_of_its_layers(self, kind):
        model = build("vit64x2", classes=10, image_size=8)
        dense = count_parameters(model)
        technique: Technique = Monarch(blocks=4) if kind == "monarch" else LowRank(blocks=4)
        technique.reshape(model)
        sizes = [(64, 192), (64, 64), (64, 256), (256, 64)] * 2
        saved = sum(i * o - (i + o) * min(i, o) // 4 for i, o in sizes)
        assert dense - count_parameters(model) == saved
        assert technique.measure(model, {})["structured_layers"] == 8


def test_the_rank_is_rounded_and_at_least_one():
    for inputs, outputs, blocks, rank in [
        (8, 8, 8, 1),
        (24, 48, 4, 2),
        (28, 28, 4, 2),
        (9, 9, 3, 1),
    ]:
        layer = MonarchLinear(nn.Linear(inputs, outputs), blocks)
        assert layer.factor1.shape == (blocks, blocks * rank, inputs // blocks)
        assert layer.factor2.shape == (blocks, outputs // blocks, blocks * rank)
    model = build("vit32x2", classes=10, image_size=8)
    LowRank(blocks=7).reshape(model)
    assert model.blocks[0].mlp.fc1.factor1.shape == (5, 32)  # 32 / 7 is 4.57


def test_the_factors_are_listed_by_size():
    model = build("vit64x2", classes=10, image_size=8)
    Monarch(blocks=4, layers="feed_forward").reshape(model)
    assert Monarch().measure(model, {}) == {
        "structured_layers": 4,
        "factors": "2 x (4 of 64x16 · 4 of 16x16), 2 x (4 of 16x16 · 4 of 16x64)",
    }
    assert Monarch().measure(build("vit64x2", classes=10, image_size=8), {}) == {
        "structured_layers": 0,
        "factors": "",
    }


class TestFlops:
    @pytest.mark.parametrize("blocks", [2, 4, 8])
    def test_of_one_layer_are_two_a_parameter_of_the_factors(self, blocks):
        layer = MonarchLinear(nn.Linear(192, 384), blocks)
        flops = count_flops(nn.Sequential(nn.Flatten(), layer), 8)
        rank = round(192 / blocks**2)
        first, second = blocks * (blocks * rank) * (192 // blocks), 384 * blocks * rank
        assert (layer.factor1.numel(), layer.factor2.numel()) == (first, second)
        assert flops == 2 * (first + second)

    def test_of_a_vit_are_fewer_by_what_the_layers_save(self):
        dense = build("vit64x2", classes=10, image_size=8)
        model = copy.deepcopy(dense)
        Monarch(blocks=4).reshape(model)
        tokens, saved = 4 + 1, 0
        for name in replaced(model):
            layer, weight = model.get_submodule(name), dense.get_submodule(name).weight
            saved += weight.numel() - layer.factor1.numel() - layer.factor2.numel()
        assert saved > 0
        assert count_flops(dense, 8) - count_flops(model, 8) == 2 * tokens * saved
