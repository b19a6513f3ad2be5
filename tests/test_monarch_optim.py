"""Factors in the optimizer: their learning rates, and moments that outlive a change of layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_monarch import ATTENTION, plain, replaced, tiny
from torch import nn

from raybench.experiment import Recipe
from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.layers.monarch_linear import MonarchLinear
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch
from raybench.training import optimizers as module
from raybench.training.optim import build_optimizer
from raybench.training.trainer import train


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """Every optimizer that the loop builds."""
    built: list[torch.optim.Optimizer] = []

    def note(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        built.append(build_optimizer(*arguments, **named))
        return built[-1]

    monkeypatch.setattr(module, "build_optimizer", note)
    return built


# --- Learning rates -----------------------------------------------------------------------------


def scales(model: nn.Module, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Factor of the learning rate, and decay, of every parameter, as the optimizer has them."""
    groups = build_optimizer(model, recipe).param_groups
    actual = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: actual[id(parameter)] for name, parameter in model.named_parameters()}


class TestLearningRates:
    def test_a_factor_of_fewer_inputs_takes_larger_steps(self):
        model = nn.ModuleDict(
            {
                "up": MonarchLinear(nn.Linear(768, 3072), 4),
                "down": MonarchLinear(nn.Linear(3072, 768), 4),
                "low": LowRankLinear(nn.Linear(768, 3072), 192),
                "dense": nn.Linear(3, 3),
            }
        )
        assert scales(model, Recipe(optimizer="adamw", weight_decay=0.03)) == {
            "up.factor1": (2.0, 0.03),
            "up.factor2": (2.0, 0.03),
            "up.bias": (1.0, 0.0),
            "down.factor1": (2.0, 0.03),
            "down.factor2": (8.0, 0.03),
            "down.bias": (1.0, 0.0),
            "low.factor1": (0.5, 0.03),
            "low.factor2": (2.0, 0.03),
            "low.bias": (1.0, 0.0),
            "dense.weight": (1.0, 0.03),
            "dense.bias": (1.0, 0.0),
        }

    @pytest.mark.parametrize(
        "technique",
        [Monarch(), Monarch(mode="dense_to_sparse", switch_at=0.0), LowRank()],
        ids=["from_scratch", "projected", "low_rank"],
    )
    def test_scale_lr_may_be_off(self, technique):
        for on in (True, False):
            model = build("vit32x2", classes=10, image_size=8)
            chosen = replace(technique, scale_lr=on)
            chosen.reshape(model)
            chosen.restructure(model, Progress(0, 1), {})
            actual = {scale for scale, _ in scales(model, Recipe()).values()}
            assert (actual == {1.0}) == (not on)
            assert len(replaced(model)) == 8

    def test_a_layer_that_is_the_whole_model_has_its_own(self):
        layer = MonarchLinear(nn.Linear(8, 32), 2)
        assert scales(layer, Recipe())["factor1"][0] == layer.lr_scale["factor1"] == 1.0
        assert scales(layer, Recipe())["factor2"][0] == layer.lr_scale["factor2"] == 8 / 4 / 2
        wide = MonarchLinear(nn.Linear(64, 16), 2)
        assert scales(wide, Recipe())["factor2"][0] == 64 / 8 / 2

    def test_the_loops_rate_is_multiplied_by_it(self, optimizers):
        experiment = tiny(monarch=Monarch(blocks=4))
        for epoch in train(experiment):
            (optimizer,) = optimizers
            assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 2.0, 8.0}
            for group in optimizer.param_groups:
                assert group["lr"] == epoch.metrics["lr"] * group["lr_scale"] > 0


# --- Continuing ---------------------------------------------------------------------------------


class TestContinuing:
    @pytest.mark.parametrize("kind", ["sgd", "adamw"])
    def test_moments_stay_with_the_parameters_that_stay(self, kind):
        recipe = Recipe(optimizer=kind, lr=0.01)
        technique = Monarch(blocks=4, layers="attention", mode="dense_to_sparse", switch_at=0.0)
        model = build("vit32x2", classes=10, image_size=8)
        first = build_optimizer(model, recipe)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        first.step()
        stayed = {p: copy.deepcopy(first.state[p]) for p in model.parameters()}
        assert technique.restructure(model, Progress(0, 1), {})

        second = build_optimizer(model, recipe, continuing=first)
        new = {name for name, p in model.named_parameters() if p not in stayed}
        # A bias begins anew as well: it is the new layer's.
        assert {name.rpartition(".")[0] for name in new} == ATTENTION
        assert len(new) == 3 * len(ATTENTION)
        for name, parameter in model.named_parameters():
            moments = {k: v for k, v in second.state.get(parameter, {}).items() if v is not None}
            if name in new:
                assert not any(value.any() for value in moments.values()), name
                continue
            assert moments, name
            for moment, value in moments.items():
                assert torch.equal(value, stayed[parameter][moment])
                assert value.any()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        second.step()
        assert all(parameter in second.state for parameter in model.parameters())
        assert len(second.state) == len(list(model.parameters()))  # and none of what went

    def test_without_it_every_moment_is_new(self):
        model = nn.Linear(3, 3)
        first = build_optimizer(model, Recipe())
        model(torch.randn(2, 3)).sum().backward()
        first.step()
        assert first.state
        assert not build_optimizer(model, Recipe()).state

    def test_in_the_loop(self, optimizers):
        monarch = Monarch(layers="attention", mode="dense_to_sparse", switch_at=0.5)
        epochs = list(train(tiny(monarch=monarch)))
        assert len(epochs) == len(optimizers) == 2
        steps = {int(state["step"]) for state in optimizers[0].state.values()}
        # The first one's states went on as the second one's; those of what went stood still.
        assert steps == {4, 8}
        new = [s for s in optimizers[1].state.values() if int(s["step"]) == 4]
        assert len(new) == 3 * len(ATTENTION)
        assert len(optimizers[1].state) == len(list(plain().parameters())) + len(ATTENTION)
