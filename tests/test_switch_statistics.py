"""What a mixture tells about its routing: its figures, and the penalty of them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_switch import PLAIN, UNSEEN, mixture_of, sent_to, steered
from timm.layers import Mlp
from torch import nn

from raybench.models import build
from raybench.techniques.switch import Mixture, Switch, mixtures


class TestStatistics:
    def test_known_routing_gives_known_figures(self):
        mixture = steered(replace(PLAIN, capacity_factor=1.0))
        mixture(sent_to([0, 0, 0, 1]))
        statistics = mixture.statistics()
        assert statistics["load_cv"] == pytest.approx(
            torch.tensor([3.0, 1, 0, 0]).std(correction=0)
        )
        assert statistics["dead_experts"] == 2
        assert statistics["dropped_share"] == pytest.approx(0.5)
        assert statistics["router_entropy"] == pytest.approx(0.0, abs=1e-6)
        assert statistics["balance_loss"] == pytest.approx(4 * (0.75**2 + 0.25**2))
        assert statistics["z_loss"] == pytest.approx(40.0**2)

    def test_an_even_load_is_balanced(self):
        mixture = steered(PLAIN)
        mixture(sent_to([0, 1, 2, 3] * 3))
        statistics = mixture.statistics()
        assert statistics["load_cv"] == pytest.approx(0.0, abs=1e-6)
        assert statistics["balance_loss"] == pytest.approx(1.0)
        assert statistics["dead_experts"] == statistics["dropped_share"] == 0

    def test_one_expert_with_everything_has_a_balance_loss_of_all_experts(self):
        mixture = steered(PLAIN)
        mixture(sent_to([1] * 6))
        statistics = mixture.statistics()
        assert statistics["balance_loss"] == pytest.approx(4.0)
        assert statistics["load_cv"] == pytest.approx(math.sqrt(3))
        assert statistics["dead_experts"] == 3

    @pytest.mark.parametrize("experts", [1, 2, 7])
    def test_a_router_that_knows_nothing(self, experts):
        """Its entropy is log(E), and any load has a balance loss of 1 at uniform probabilities."""
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, experts=experts))
        mixture.router.weight.data.zero_()
        mixture(torch.randn(10, 8))
        statistics = mixture.statistics()
        assert statistics["router_entropy"] == pytest.approx(math.log(experts), abs=1e-6)
        assert statistics["balance_loss"] == pytest.approx(1.0)
        assert statistics["z_loss"] == pytest.approx(math.log(experts) ** 2, abs=1e-6)

    def test_dead_is_under_a_hundredth_of_an_even_load(self):
        mixture = steered(PLAIN)
        mixture(sent_to([0] * 398 + [1] * 2))  # shares .995 and .005; an even one is .25
        assert mixture.statistics()["dead_experts"] == 2
        mixture = steered(PLAIN)
        mixture(sent_to([0] * 998 + [1] * 2))  # .002 is under .0025
        assert mixture.statistics()["dead_experts"] == 3

    def test_load_counts_what_was_wanted_before_the_drop(self):
        mixture = steered(replace(PLAIN, experts=2, capacity_factor=0.5))
        mixture(sent_to([0] * 6 + [1] * 2))
        assert mixture.statistics()["load_cv"] == pytest.approx(0.5)

    def test_are_means_over_the_steps_since_train(self):
        mixture = steered(PLAIN)
        assert set(mixture.statistics().values()) <= {0.0, 4.0}  # no step yet: nothing is known
        mixture(sent_to([0] * 4))
        mixture(sent_to([1] * 12))
        mixture.train()  # it was training already
        statistics = mixture.statistics()
        assert statistics["balance_loss"] == pytest.approx(4.0)
        assert statistics["load_cv"] == pytest.approx(
            1.0
        )  # loads of .5 and .5, whatever the tokens
        assert statistics["dead_experts"] == 2
        mixture.eval()
        mixture(sent_to([2] * 4))
        assert mixture.statistics() == statistics  # evaluation counts for nothing
        mixture.train()
        mixture(sent_to([0, 1, 2, 3]))
        assert mixture.statistics()["balance_loss"] == pytest.approx(1.0)

    def test_of_a_model_are_means_but_the_dead_are_counted(self):
        model = build("vit32x2", classes=10, image_size=8)
        PLAIN.reshape(model)
        for mixture, assigned in zip(mixtures(model), ([0] * 4, [0, 1, 2, 3]), strict=True):
            steer = torch.zeros(4, 32)
            steer[:, :4] = 40 * torch.eye(4)
            mixture.router.weight.data = steer
            mixture(sent_to(assigned, 32))
        measured = PLAIN.measure(model, {})
        assert {name: type(value) for name, value in measured.items()} == {
            name: column.type for name, column in Switch.columns.items()
        }
        assert measured["dead_experts"] == 3
        assert measured["balance_loss"] == pytest.approx((4 + 1) / 2)
        assert PLAIN.measure(build("vit32x2", classes=10, image_size=8), {}) == {}

    def test_the_tally_is_no_part_of_the_stored_model(self):
        assert not any("tally" in name for name in Mixture(Mlp(6, 8), PLAIN).state_dict())


class TestPenalty:
    def model(self, chosen: Switch) -> nn.Module:
        model = build("vit32x2", classes=10, image_size=8)
        chosen.reshape(model)
        model(torch.randn(2, 3, 8, 8))
        return model

    @pytest.mark.parametrize("name", ["balance_loss", "z_loss"])
    def test_its_gradient_reaches_every_router(self, name):
        chosen = replace(PLAIN, **{name: 1.0})
        model = self.model(chosen)
        chosen.penalty(model, UNSEEN, {}).backward()
        actual = list(mixtures(model))
        assert all(mixture.router.weight.grad.any() for mixture in actual)
        assert actual[-1].experts.weight1.grad is None  # a penalty is the router's business

    def test_adds_the_mixtures_up(self):
        chosen = replace(PLAIN, balance_loss=0.5, z_loss=0.25)
        model = self.model(chosen)
        told = [mixture.statistics() for mixture in mixtures(model)]
        assert len(told) == 2
        wanted = sum(0.5 * found["balance_loss"] + 0.25 * found["z_loss"] for found in told)
        assert float(chosen.penalty(model, UNSEEN, {}).detach()) == pytest.approx(wanted)

    def test_weights_of_zero_add_nothing(self):
        model = self.model(PLAIN)
        penalty = PLAIN.penalty(model, UNSEEN, {})
        assert float(penalty.detach()) == 0.0
        penalty.backward()
        for mixture in mixtures(model):
            assert mixture.router.weight.grad.eq(0).all()

    def test_is_of_the_last_training_step_alone(self):
        chosen = replace(PLAIN, balance_loss=1.0)
        model = self.model(chosen)
        assert float(chosen.penalty(model, UNSEEN, {}).detach()) > 0
        model.eval()
        model(torch.randn(2, 3, 8, 8))
        assert chosen.penalty(model, UNSEEN, {}) == 0.0

    def test_a_model_can_be_copied_right_after_a_training_step(self):
        chosen = replace(PLAIN, balance_loss=1.0)
        model = self.model(chosen)
        twin = copy.deepcopy(model)
        assert float(chosen.penalty(model, UNSEEN, {}).detach()) > 0
        assert chosen.penalty(twin, UNSEEN, {}) == 0.0
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(twin(x), model(x))
        assert chosen.measure(twin, {}) == chosen.measure(model, {})
