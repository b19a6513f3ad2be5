"""The learning rate's curve, and what is decayed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raybench.experiment import Recipe
from raybench.models import build
from raybench.models.blocks import blocks
from raybench.training.optim import build_optimizer, learning_rate

SCHEDULES = ["cosine", "linear", "constant"]


class TestCurve:
    @pytest.mark.parametrize(
        ("schedule", "table"),
        [
            ("cosine", {0: 0, 0.1: 1, 0.2: 2, 0.4: 1.7071, 0.6: 1, 0.8: 0.2929, 1: 0}),
            ("linear", {0: 0, 0.1: 1, 0.2: 2, 0.4: 1.5, 0.6: 1, 0.8: 0.5, 1: 0}),
            ("constant", {0: 0, 0.1: 1, 0.2: 2, 0.4: 2, 0.6: 2, 0.8: 2, 1: 2}),
        ],
    )
    def test_the_drawn_curve(self, schedule, table):
        recipe = Recipe(lr=2.0, warmup=0.2, schedule=schedule)
        for share, rate in table.items():
            assert learning_rate(recipe, share) == pytest.approx(rate, abs=1e-4)

    @given(st.sampled_from(SCHEDULES), st.floats(0.01, 0.9), st.floats(1e-4, 10))
    def test_is_continuous_at_the_end_of_the_warm_up(self, schedule, warmup, lr):
        recipe = Recipe(lr=lr, warmup=warmup, schedule=schedule)
        assert learning_rate(recipe, warmup) == lr
        for step in (-1e-9, 1e-9):
            assert learning_rate(recipe, warmup + step) == pytest.approx(lr, rel=1e-5)

    @given(st.sampled_from(SCHEDULES), st.floats(0, 0.9), st.floats(0, 1))
    def test_stays_between_zero_and_lr(self, schedule, warmup, share):
        recipe = Recipe(lr=0.5, warmup=warmup, schedule=schedule)
        assert 0 <= learning_rate(recipe, share) <= 0.5

    def test_without_a_warm_up_starts_at_lr(self):
        assert learning_rate(Recipe(lr=0.5, warmup=0.0), 0.0) == 0.5


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
class TestGroups:
    def test_filters_and_matrices_are_decayed_norms_and_biases_not(self, kind):
        model = build("resnet20", classes=10, image_size=8)
        optimizer = build_optimizer(model, Recipe(optimizer=kind, weight_decay=0.03))
        decay = {
            id(parameter): group["weight_decay"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        actual = {name: decay.pop(id(parameter)) for name, parameter in model.named_parameters()}
        assert not decay
        assert actual["conv1.weight"] == actual["fc.weight"] == 0.03
        assert actual["fc.bias"] == actual["bn1.weight"] == actual["layer3.2.bn2.bias"] == 0.0
        assert sum(value == 0.03 for value in actual.values()) == 20

    def test_embeddings_are_not_decayed(self, kind):
        """As timm does, whole or as a stage of a pipeline."""
        vit = build("vit32x2", classes=10, image_size=8)
        for model in (vit, nn.Sequential(*blocks(vit))):
            groups = build_optimizer(model, Recipe(optimizer=kind, weight_decay=0.03)).param_groups
            free = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
            assert {id(vit.pos_embed), id(vit.cls_token)} <= free
            assert not {id(vit.blocks[0].attn.qkv.weight), id(vit.head.weight)} & free

    def test_what_a_model_names_is_not_decayed(self, kind):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        model.no_weight_decay = lambda: {"1.weight"}
        optimizer = build_optimizer(model, Recipe(optimizer=kind, weight_decay=0.03))
        decayed = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
        assert [id(p) for p in decayed] == [id(model[0].weight)]

    def test_frozen_parameters_stay_out(self, kind):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        model[0].requires_grad_(False)
        groups = build_optimizer(model, Recipe(optimizer=kind)).param_groups
        reached = {id(parameter) for group in groups for parameter in group["params"]}
        assert reached == {id(model[1].weight), id(model[1].bias)}

    def test_a_step_moves_a_norm_without_decay(self, kind):
        """At a gradient of zero only the decay moves anything."""
        model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        optimizer = build_optimizer(
            model, Recipe(optimizer=kind, lr=0.1, momentum=0.0, weight_decay=0.5)
        )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        matrix, *vectors = zip(model.parameters(), before, strict=True)
        assert torch.allclose(matrix[0], matrix[1] * (1 - 0.1 * 0.5))
        assert all(torch.equal(now, then) for now, then in vectors)


def test_each_optimizer_is_what_its_name_says():
    model = nn.Linear(2, 2)
    sgd = build_optimizer(model, Recipe(optimizer="sgd", momentum=0.8, lr=0.3))
    assert isinstance(sgd, torch.optim.SGD)
    assert all(g["momentum"] == 0.8 and g["nesterov"] and g["lr"] == 0.3 for g in sgd.param_groups)
    plain = build_optimizer(model, Recipe(optimizer="sgd", momentum=0.0))
    assert not any(group["nesterov"] for group in plain.param_groups)
    assert isinstance(build_optimizer(model, Recipe(optimizer="adamw")), torch.optim.AdamW)
