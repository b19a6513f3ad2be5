"""Muon: updates are orthogonal, stacks are single matrices, the ends keep the recipe's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench.models import build
from raybench.parallel.ddp import Replicas
from raybench.techniques.muon import Muon, MuonOptimizer, hidden, orthogonal
from raybench.techniques.switch import Switch
from raybench.training.optimizers import Optimizers
from raybench.training.trainer import train


@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16), (1, 32, 32)])
def test_singular_values_of_an_update_are_about_1(shape):
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.3  # five steps take tiny singular values only a part of the way
    assert values.max() < 1.3


def test_an_update_points_along_the_exact_factor():
    matrix = torch.randn(1, 24, 40)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    exact, ours = left @ right, orthogonal(matrix)
    assert torch.cosine_similarity(exact.flatten(), ours.flatten(), 0) > 0.95


def test_a_gradient_of_zeros_moves_nothing():
    assert not orthogonal(torch.zeros(2, 4, 6)).any()


def test_a_stack_is_updated_as_its_matrices_are():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 5))
    singles = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    together = MuonOptimizer([{"params": [stack], "stacked": 1}], lr=0.1)
    apart = MuonOptimizer([{"params": singles, "stacked": 0}], lr=0.1)
    for _ in range(3):
        stack.grad = torch.randn_like(stack)
        for single, gradient in zip(singles, stack.grad, strict=True):
            single.grad = gradient.clone()
        together.step()
        apart.step()
    assert torch.allclose(stack, torch.stack([*singles]), atol=1e-5)


def test_weight_decay_shrinks_a_weight_without_a_gradient():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    MuonOptimizer([{"params": [weight], "stacked": 0}], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))


def test_it_leaves_the_ends_and_all_vectors_to_the_recipe():
    model = build("resnet20", classes=10, image_size=32)
    names = [weight.name for weight in hidden(model)]
    convolutions = [n for n, p in model.named_parameters() if p.ndim == 4]
    assert names == convolutions[1:]
    assert Muon().acts_on(model) == names


def test_experts_are_single_matrices():
    model = build("vit32x2", classes=10, image_size=8)
    Switch(experts=4, blocks="all").reshape(model)
    groups = Muon().optimizer(model, 0.1).param_groups
    assert {group["stacked"] for group in groups} == {0, 1}
    assert all(p.ndim == 3 for g in groups if g["stacked"] for p in g["params"])


def test_the_recipes_schedule_scales_its_rate(tiny):
    experiment = replace(tiny, muon=Muon(lr=0.02))
    model = build("resnet20", classes=10, image_size=8)
    optimizers = Optimizers(model, model, experiment, Replicas())
    optimizers.set_rate(experiment.recipe.lr / 2)
    assert {group["lr"] for group in optimizers.of("muon").param_groups} == {0.01}
    rest = {p for group in optimizers.recipe.param_groups for p in group["params"]}
    assert not rest & {weight.value for weight in hidden(model)}


def test_it_trains(tiny):
    *_, last = train(replace(tiny, muon=Muon(lr=0.02)))
    assert last.metrics["muon_coverage"] > 0.9
    assert last.metrics["loss"] > 0


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Muon(**wrong)
