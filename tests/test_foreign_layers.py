"""Monarch, low-rank layers and experts in models that are not ours."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from slow_monarch import assert_close
from small_foreign import CLASSES, FOREIGN, Encoder, Functional, Stack, feed_forward, images
from timm.layers import GluMlp
from torch import Tensor, nn

from raybench.techniques import Technique
from raybench.techniques.layers.classifier import classifier
from raybench.techniques.layers.linear_layers import put
from raybench.techniques.layers.monarch_linear import MonarchLinear, multiply_out
from raybench.techniques.layers.weights import coverage
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch
from raybench.techniques.switch import Mixture, Switch, mixtures

MODELS = pytest.mark.parametrize("name", sorted(FOREIGN))


def foreign(name: str) -> nn.Module:
    """The model, with numbers where it begins with zeros or nearly so: else nothing before them
    gets a gradient."""
    torch.manual_seed(0)
    model = FOREIGN[name]()
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return sum(y) if isinstance(y, tuple) else y  # of a distilled one's two heads


@torch.no_grad()
def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """Without a gradient, where torch's fast paths are taken."""
    return logits(model.eval(), x)


def assert_trains(model: nn.Module, technique: Technique) -> None:
    """Every parameter on which it acts moves in three steps, and keeps on being finite."""
    names = technique.acts_on(model)
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(model, images()), torch.randint(CLASSES, (4,)))
        loss.backward()
        optimizer.step()
    assert names
    for name, value in before.items():
        assert not torch.equal(model.get_parameter(name), value), name
    assert evaluated(model, images()).isfinite().all()


@MODELS
@pytest.mark.parametrize("technique", [Monarch(blocks=2), LowRank(blocks=2)], ids=["mon", "low"])
def test_factors_stand_for_the_product_and_train(name, technique):
    """Also where the model reads `weight` past the layer, or evaluates by torch's fast path."""
    model = foreign(name)
    dense = sum(parameter.numel() for parameter in model.parameters())
    technique.reshape(model)
    assert 0 < coverage(model, technique.acts_on(model)) < 1
    assert sum(parameter.numel() for parameter in model.parameters()) < dense
    multiplied, x = copy.deepcopy(model), images()
    for path, layer in list(multiplied.named_modules()):
        if isinstance(layer, MonarchLinear):
            put(multiplied, path, multiply_out(layer))
        elif isinstance(layer, LowRankLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.weight.data, plain.bias = layer.weight.detach(), layer.bias
            put(multiplied, path, plain)
    assert_close(evaluated(model, x), evaluated(multiplied, x), 1e-4)
    assert_trains(model, technique)


@MODELS
def test_experts_that_are_copies_change_nothing_and_train(name):
    model, x = foreign(name), images()
    before = evaluated(model, x)
    switch = Switch(experts=3, blocks="all", upcycle=True, gate="normalized")
    switch.reshape(model)
    assert list(mixtures(model))
    assert_close(evaluated(model, x), before, 1e-4)
    assert 0 < coverage(model, switch.acts_on(model)) < 1
    one = next(mixtures(model))
    for parameter in one.experts.parameters():  # and they are what gives the output
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(evaluated(model, x), before, rtol=1e-3, atol=1e-4)
    drawn = foreign(name)
    switch = Switch(experts=2, blocks="all")
    switch.reshape(drawn)
    names = [n for n in switch.acts_on(drawn) if "bias" not in n]
    assert len(names) == 3 * len(list(mixtures(drawn)))
    assert_trains(drawn, Only(names))


class Only(Technique):
    """Acts on these parameters: an expert's bias may wait for its first token."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def acts_on(self, model: nn.Module) -> list[str]:
        return self.names


class TestNumbersOfFeedForwards:
    @pytest.mark.parametrize(
        ("name", "blocks", "wanted"),
        [
            ("swin", "second", ["layers.1.blocks.0.mlp"]),
            ("swin", "last_two", ["layers.1.blocks.0.mlp", "layers.1.blocks.1.mlp"]),
            ("mixer", "0", ["blocks.0.mlp_channels"]),
            ("torchvision_vit", "1", ["encoder.layers.encoder_layer_1.mlp"]),
            ("torchvision_convnext", "1", ["features.1.1.block.3"]),
            ("encoder", "1", ["encoder.layers.1.linear1"]),
            ("residual", "0", ["blocks.0.wide"]),
            ("sequential", "0", ["blocks.0.1"]),
        ],
    )
    def test_are_in_the_order_of_the_model(self, name, blocks, wanted):
        model = foreign(name)
        Switch(experts=2, blocks=blocks).reshape(model)
        assert [n for n, m in model.named_modules() if isinstance(m, Mixture)] == wanted

    @pytest.mark.parametrize(
        ("model", "why"),
        [
            (Stack(Functional()), "a Stack has no feed-forward .two linear layers"),
            (Stack(GluMlp(32, 64)), "feed-forward 0, blocks.0, .*it is gated"),
            (Stack(*[feed_forward(nn.GELU())] * 2), "its weights are shared"),
            (nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)), "has no"),
        ],
    )
    def test_what_cannot_be_replaced_is_refused_with_its_reason(self, model, why):
        before = list(model.modules())
        with pytest.raises(ValueError, match=why):
            Switch(experts=2, blocks="all").reshape(model)
        assert list(model.modules()) == before


class TestWhichLinearLayers:
    @pytest.mark.parametrize(
        ("name", "layers", "wanted"),
        [
            ("swin", "attention", {"attn.qkv", "attn.proj"}),
            ("beit", "attention", {"attn.qkv", "attn.proj"}),
            ("swinv2", "both", {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}),
            ("mobilevit", "feed_forward", {"mlp.fc1", "mlp.fc2"}),
            ("convnext", "both", {"mlp.fc1", "mlp.fc2"}),
            ("torchvision_vit", "attention", {"self_attention.out_proj"}),
            ("torchvision_vit", "both", {"self_attention.out_proj", "mlp.0", "mlp.3"}),
            ("encoder", "attention", {"self_attn.out_proj"}),
            ("encoder", "feed_forward", {"0.linear1", "0.linear2", "1.linear1", "1.linear2"}),
            (
                "swin",
                "all",
                {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"} | {"downsample.reduction"},
            ),
        ],
    )
    def test_by_what_they_are(self, name, layers, wanted):
        model = foreign(name)
        Monarch(blocks=2, layers=layers).reshape(model)
        ends = {
            ".".join(path.split(".")[-2:])
            for path, module in model.named_modules()
            if isinstance(module, MonarchLinear)
        }
        assert ends == wanted

    def test_functions_and_gates_are_feed_forwards_here(self):
        """Their layers are linear ones, whatever stands between."""
        for block in (Functional(), GluMlp(32, 64)):
            technique = Monarch(blocks=2, layers="feed_forward")
            model = Stack(block)
            technique.reshape(model)
            assert {n.split(".")[2] for n in technique.acts_on(model)} == {"fc1", "fc2"}
            assert_trains(model, technique)

    @pytest.mark.parametrize(
        ("model", "wanted"),
        [
            (FOREIGN["deit"], {"head", "head_dist"}),
            (FOREIGN["torchvision_vit"], {"heads.head"}),
            (FOREIGN["convnext"], {"head.fc"}),
            (Encoder, {"head"}),  # registered first
            (lambda: Stack(Functional()), {"classify"}),  # by what it gives
            (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), {"1"}),
        ],
    )
    def test_all_but_the_classifier(self, model, wanted):
        built = model()
        assert classifier(built) == wanted
        Monarch(blocks=2, layers="all").reshape(built)
        assert all(type(built.get_submodule(name)) is nn.Linear for name in wanted)

    def test_the_classifier_is_not_the_last_registered(self):
        model = Stack(Functional())
        model.embedding = nn.Linear(32, 32)  # after it, and never called
        assert classifier(model) == {"classify"}

    def test_tied_subclassed_and_parametrized_layers_stay(self):
        class Scaled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) / 2

        model = Stack(*(feed_forward(nn.GELU()) for _ in range(4)))
        one, two, three, _ = model.blocks
        two[1].weight = one[1].weight
        two[4] = Scaled(64, 32)
        nn.utils.parametrizations.orthogonal(three[1])
        technique = Monarch(blocks=2, layers="all")
        technique.reshape(model)
        names = {name.rpartition(".")[0] for name in technique.acts_on(model)}
        assert names == {"blocks.0.4", "blocks.2.4", "blocks.3.1", "blocks.3.4"}

    def test_factors_larger_than_the_layer_are_refused(self):
        model = Stack(Functional())
        model.blocks[0].fc1, model.blocks[0].fc2 = nn.Linear(32, 8), nn.Linear(8, 32)
        with pytest.raises(ValueError, match=r"the factors would be larger than blocks\.0\.fc1"):
            Monarch(blocks=8).reshape(model)
