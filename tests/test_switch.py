"""Mixtures of experts token by token against a slow reference."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_switch import assert_close, routed, slow
from small_switch import PLAIN, UNSEEN, mixture_of
from timm.layers import Mlp
from torch import Tensor

from raybench.techniques.switch import Mixture, Switch


def gradients(y: Tensor, direction: Tensor, x: Tensor, mixture: Mixture) -> dict[str, Tensor]:
    names = ["x", *(name for name, _ in mixture.named_parameters())]
    actual = torch.autograd.grad(
        (y.float() * direction).sum(),
        [x, *mixture.parameters()],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, actual, strict=True))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Mixture, Tensor]:
    experts = draw(st.integers(1, 7))
    chosen = Switch(
        experts=experts,
        top_k=draw(st.integers(1, min(2, experts))),
        capacity_factor=draw(st.sampled_from([math.inf, 0.5, 1.0, 1.5])),
        gate=draw(st.sampled_from(["probability", "normalized"])),
        shared_expert=draw(st.booleans()),
        jitter=0.0,
    )
    width, hidden = draw(st.integers(4, 40)), 8 * draw(st.integers(1, 6))
    mixture = mixture_of(Mlp(width, hidden), chosen, seed=draw(st.integers(0, 99)))
    mixture.train(draw(st.sampled_from([True, True, True, False])))
    images, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    return mixture, torch.randn(images, tokens, width, requires_grad=True)


class TestAgainstTheReference:
    @pytest.mark.slow
    @settings(max_examples=80)
    @given(cases())
    def test_forward_and_every_gradient(self, case):
        mixture, x = case
        y, wanted = mixture(x), slow(mixture, x.flatten(0, 1)).view(x.shape)
        assert y.dtype == torch.float32
        assert_close(y, wanted, 1e-5)
        direction = torch.randn_like(x)
        actual = gradients(y, direction, x, mixture)
        for name, gradient in gradients(wanted, direction, x, mixture).items():
            assert_close(actual[name], gradient, 1e-5, name)

    @settings(max_examples=25)
    @given(cases())
    def test_penalties_and_their_gradients(self, case):
        mixture, x = case
        mixture.train()
        mixture(x)
        chosen, rows = mixture.settings, x.flatten(0, 1)
        p, choices, _ = routed(mixture, rows)
        counts = Counter(expert for row in choices for expert in row)
        shares = torch.tensor([counts[e] for e in range(chosen.experts)]) / counts.total()
        balance = chosen.experts * sum(shares[e] * p[:, e].mean() for e in range(chosen.experts))
        z = torch.stack([row.exp().sum().log() ** 2 for row in mixture.router(rows)]).mean()
        for weights in ((1.0, 0.0), (0.0, 1.0), (0.25, 0.125)):
            technique = replace(chosen, balance_loss=weights[0], z_loss=weights[1])
            actual, wanted = (
                technique.penalty(mixture, UNSEEN, {}),
                weights[0] * balance + weights[1] * z,
            )
            assert_close(actual, wanted, 1e-5)
            for name, tensor in {"x": x, "router": mixture.router.weight}.items():
                one, other = (
                    torch.autograd.grad(loss, tensor, retain_graph=True)[0]
                    for loss in (actual, wanted)
                )
                assert_close(one, other, 1e-4, name)

    @pytest.mark.parametrize("top_k", [1, 2])
    @pytest.mark.parametrize(("width", "hidden"), [(7, 24), (32, 128), (300, 64)])
    def test_bf16_is_close_to_fp32(self, width, hidden, top_k):
        """Rows of 300 numbers of 2 bytes, and of 301 with the bias, are no multiple of 16 bytes."""
        chosen = replace(PLAIN, experts=5, top_k=top_k, capacity_factor=1.0, shared_expert=True)
        mixture = mixture_of(Mlp(width, hidden), chosen)
        x = torch.randn(3, 17, width, requires_grad=True)
        direction = torch.randn_like(x)
        exact = mixture(x)
        wanted = gradients(exact, direction, x, mixture)
        with torch.autocast("cpu", torch.bfloat16):
            y = mixture(x)
        assert y.dtype == torch.bfloat16
        assert not torch.equal(y.float(), exact)
        assert_close(y.float(), exact, 0.03)
        for name, gradient in gradients(y, direction, x, mixture).items():
            assert gradient.dtype == torch.float32
            assert_close(gradient, wanted[name], 0.06, name)

    @pytest.mark.parametrize(("hidden", "bf16"), [(6, False), (12, True)])
    def test_any_hidden_width_works(self, hidden, bf16):
        mixture, x = mixture_of(Mlp(8, hidden), PLAIN), torch.randn(9, 8)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            assert_close(mixture(x).float(), slow(mixture, x), 0.03 if bf16 else 1e-5)
