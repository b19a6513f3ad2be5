"""Mixtures in a model: the blocks that they replace, and what they cost."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from small_switch import PLAIN, tiny
from timm.layers import GluMlp, Mlp
from timm.models.vision_transformer import VisionTransformer

from raybench.experiment import Recipe
from raybench.models import build
from raybench.techniques.switch import Mixture, Switch, mixtures
from raybench.training.measure import count_flops
from raybench.training.optim import build_optimizer
from raybench.training.trainer import train


class TestPlacement:
    @pytest.mark.parametrize(
        ("blocks", "replaced"),
        [
            ("all", [0, 1, 2, 3]),
            ("second", [1, 3]),
            ("last_two", [2, 3]),
            ("1,3", [1, 3]),
            ("3, 1,1", [1, 3]),
            ("0", [0]),
        ],
    )
    def test_replaces_exactly_those_blocks(self, blocks, replaced):
        model = build("vit32x4", classes=10, image_size=8)
        dense = {name: p for name, p in model.named_parameters() if ".mlp." not in name}
        Switch(experts=3, blocks=blocks).reshape(model)
        actual = [i for i, block in enumerate(model.blocks) if isinstance(block.mlp, Mixture)]
        assert actual == replaced
        assert [len(mixture.experts) for mixture in mixtures(model)] == [3] * len(replaced)
        now = dict(model.named_parameters())
        assert all(now[name] is parameter for name, parameter in dense.items())
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()

    def test_zero_experts_is_the_plain_model(self):
        model = build("vit32x2", classes=10, image_size=8)
        before = torch.get_rng_state()
        Switch(experts=0, blocks="all").reshape(model)
        assert not list(mixtures(model))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.usefixtures("no_training")
    @pytest.mark.parametrize(
        ("model", "blocks", "said"),
        [
            ("vit32x2", "0,2", "blocks is '0,2', but the model has the blocks 0 to 1"),
            ("resnet20", "all", "a ResNetCifar has no feed-forward .two linear layers"),
            ("poolformer_s12", "all", r"stages\.0\.blocks\.0\.mlp, .*its layers are convolutions"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_anything_trains(self, model, blocks, said):
        experiment = tiny(model=model, switch=Switch(experts=2, blocks=blocks))
        with pytest.raises(ValueError, match=said):
            next(iter(train(replace(experiment, image_size=32))))

    def test_a_gated_feed_forward_is_refused(self):
        """Its fc1 and fc2 have the plain one's names, and another shape."""
        model = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_layer=GluMlp
        )
        with pytest.raises(ValueError, match=r"0, blocks\.0\.mlp, .*a GluMlp is not one: it is"):
            Switch(experts=2, blocks="all").reshape(model)

    def test_a_feed_forward_without_biases_is_refused(self):
        model = build("vit32x2", classes=10, image_size=8)
        model.blocks[1].mlp = Mlp(32, 64, bias=False)
        with pytest.raises(ValueError, match=r"1, blocks\.1\.mlp, .* have no biases"):
            Switch(experts=2, blocks="all").reshape(model)
        assert not list(mixtures(model))  # not the first block either


class TestCosts:
    @pytest.mark.parametrize(
        ("width", "experts"), [(32, 1), (32, 7), (30, 4), (31, 4), (33, 64), (300, 4)]
    )
    def test_flops_are_the_plain_models_and_the_routers(self, width, experts):
        """One expert a token. In fp32 the rows of both products hold a column of ones for the bias
        and zeros up to a multiple of 4, as do the results: (T, d) (d, h), then (T, h) (h, out)."""
        plain = build(f"vit{width}x2", classes=10, image_size=8)
        switched = copy.deepcopy(plain)
        replace(PLAIN, experts=experts).reshape(switched)
        tokens, hidden = 4 + 1, plain.blocks[0].mlp.fc1.out_features
        router = 2 * tokens * width * experts
        d, h, out = (-(-n // 4) * 4 for n in (width + 1, hidden + 1, width))
        extra = router + 2 * tokens * (d * h + h * out - 2 * width * hidden)
        assert count_flops(switched, 8) - count_flops(plain, 8) == 2 * extra

    def test_two_experts_a_token_cost_twice_the_feed_forward(self):
        one, two = (build("vit32x2", classes=10, image_size=8) for _ in range(2))
        PLAIN.reshape(one)
        replace(PLAIN, top_k=2).reshape(two)
        hidden = one.blocks[0].mlp.experts.weight1.shape[1]
        assert count_flops(two, 8) - count_flops(one, 8) == 2 * 2 * 5 * (hidden + 4) * (36 + 32)

    def test_stacked_weights_are_decayed_and_stacked_biases_are_not(self):
        model = build("vit32x2", classes=10, image_size=8)
        replace(PLAIN, shared_expert=True).reshape(model)
        decayed, rest = build_optimizer(model, Recipe(weight_decay=0.03)).param_groups
        assert (decayed["weight_decay"], rest["weight_decay"]) == (0.03, 0.0)
        kinds = {id(p): "decayed" for p in decayed["params"]}
        kinds |= {id(p): "rest" for p in rest["params"]}
        mixture = model.blocks[0].mlp
        actual = {name: kinds[id(p)] for name, p in mixture.named_parameters()}
        assert mixture.experts.bias1.ndim == 2
        assert {name for name, kind in actual.items() if kind == "rest"} == {
            *("experts.bias1", "experts.bias2", "shared.fc1.bias", "shared.fc2.bias")
        }
        assert actual["experts.weight1"] == actual["router.weight"] == "decayed"
