"""What stands between the layers of an expert: activations of every kind, and dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from slow_switch import assert_close, slow
from small_switch import PLAIN, mixture_of
from timm.layers import Mlp, QuickGELU
from torch import nn

from raybench.techniques.switch import Mixture

ACTIVATIONS = [
    nn.GELU(),
    nn.GELU("tanh"),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(inplace=True),
    nn.LeakyReLU(0.1, inplace=True),
    nn.ELU(inplace=True),
    nn.SELU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
    nn.SiLU(),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Hardswish(),
    QuickGELU(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("bf16", [False, True])
def test_any_activation_gives_the_references_gradients(activation, bf16):
    """Several remember their output for the way back, some write into what they are given."""
    chosen = replace(PLAIN, top_k=2, capacity_factor=1.0)
    mixture = mixture_of(Mlp(8, 12, act_layer=lambda: activation), chosen)
    x = torch.randn(11, 8, requires_grad=True)
    direction = torch.randn(11, 8)
    wanted = slow(mixture, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = mixture(x)
    tolerance = 0.06 if bf16 else 1e-5
    assert_close(y.float(), wanted, tolerance)
    ours = [x, *mixture.parameters()]
    actual = torch.autograd.grad((y.float() * direction).sum(), ours)
    for one, other in zip(
        actual, torch.autograd.grad((wanted * direction).sum(), ours), strict=True
    ):
        assert_close(one, other, 2 * tolerance)


class TestDropout:
    def test_between_the_layers_acts_in_training_alone(self):
        """With everything dropped an answer is its expert's last bias."""
        chosen = replace(PLAIN, experts=1, gate="normalized")
        mixture, x = mixture_of(Mlp(8, 12, drop=(1.0, 0.0)), chosen), torch.randn(9, 8)
        assert_close(mixture(x), mixture.experts.bias2.expand(9, 8), 1e-6)
        assert_close(mixture.eval()(x), slow(mixture, x), 1e-5)

    @pytest.mark.parametrize("place", [0, 1])
    def test_keeps_the_mean(self, place):
        """Over 4,000 draws, as the dense feed-forward's."""
        drop = (0.5, 0.0) if place == 0 else (0.0, 0.5)
        mixture = mixture_of(Mlp(8, 12, drop=drop), replace(PLAIN, experts=1, gate="normalized"))
        x = torch.randn(1, 8).expand(4000, 8)
        y = mixture(x)
        assert not torch.equal(y[0], y[1])
        assert_close(y.mean(0), mixture.eval()(x)[0], 0.1)

    def test_behind_the_layers_sets_numbers_to_zero(self):
        mixture = mixture_of(Mlp(8, 12, drop=(0.0, 0.25)), PLAIN)
        y = mixture(torch.randn(500, 8))
        assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
        assert (mixture.eval()(torch.randn(500, 8)) != 0).all()

    def test_gradients_are_those_of_the_numbers_kept(self):
        """A hidden number that was dropped gives its weights nothing."""
        mixture = mixture_of(
            Mlp(8, 12, act_layer=nn.ReLU, drop=(0.5, 0.0)), replace(PLAIN, experts=1)
        )
        mixture(torch.randn(1, 8)).sum().backward()
        silent = ~mixture.experts.weight2.grad[0].any(0)
        assert 0 < int(silent.sum()) < 12
        assert torch.equal(silent, ~mixture.experts.weight1.grad[0].any(1))


@pytest.mark.parametrize("tokens", [0, 7])
def test_without_a_token_for_any_expert_every_parameter_gets_a_gradient(tokens):
    """All dropped, or none there: other workers of the group have some."""
    mixture = mixture_of(Mlp(8, 12), replace(PLAIN, capacity_factor=1e-12, top_k=2))
    x = torch.randn(tokens, 8, requires_grad=True)
    y = mixture(x)
    assert y.shape == x.shape
    assert not y.any()
    (y.sum() + sum(mixture.penalties)).backward()
    assert all(parameter.grad is not None for parameter in mixture.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in mixture.parameters())
    assert mixture.router.weight.grad.any() == (tokens > 0)
    assert mixture.tally.isfinite().all()


def test_images_of_tokens_keep_their_shape():
    """Swin and ConvNeXt have (B, H, W, D)."""
    mixture, x = mixture_of(Mlp(8, 12), PLAIN), torch.randn(2, 3, 5, 8)
    assert_close(mixture(x), slow(mixture, x.reshape(-1, 8)).view(2, 3, 5, 8), 1e-5)


@pytest.mark.parametrize("dense", [nn.Linear(8, 8), Mlp(8, 12, bias=False), Mlp(8, 12, 9)])
def test_what_is_no_feed_forward_has_no_experts(dense):
    with pytest.raises(ValueError, match=f"a {type(dense).__name__} is not a feed-forward"):
        Mixture(dense, PLAIN)
