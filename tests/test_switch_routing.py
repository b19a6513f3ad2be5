"""The routing of a mixture: capacity, jitter, and the slots of its experts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from slow_switch import assert_close, slow
from small_switch import PLAIN, mixture_of, sent_to, steered
from timm.layers import Mlp

from raybench.techniques.layers.experts import ALIGN, SIZES, _filled, _slots
from raybench.techniques.layers.router import _noise, first_come


class TestRouting:
    def test_one_expert_gets_all_and_the_others_nothing(self):
        mixture = steered(PLAIN)
        x = sent_to([2] * 9).requires_grad_()
        y = mixture(x)
        assert_close(y, slow(mixture, x), 1e-5)
        y.square().sum().backward()
        for name, parameter in mixture.experts.named_parameters():
            assert parameter.grad[[0, 1, 3]].eq(0).all(), name
            assert parameter.grad[2].any(), name
        assert x.grad.any()

    def test_capacity_drops_exactly_the_later_tokens(self):
        mixture = steered(replace(PLAIN, capacity_factor=1.0))
        order = [0, 0, 1, 0, 0, 3, 1, 1, 0, 1, 3, 3]  # 12 tokens: 3 for each of 4 experts
        x = sent_to(order)
        late = [4, 8, 9]  # the fourth and fifth of expert 0, and the fourth of expert 1
        y = mixture(x)
        assert [token for token in range(12) if not y[token].any()] == late
        assert_close(y, slow(mixture, x), 1e-5)
        assert mixture.statistics()["dropped_share"] == pytest.approx(3 / 12)

    def test_a_dropped_token_gives_and_gets_no_gradient(self):
        mixture = steered(replace(PLAIN, capacity_factor=1.0))
        x = sent_to([0] * 8).requires_grad_()
        y = mixture(x)
        assert torch.autograd.grad(y[2:].sum(), x, retain_graph=True)[0].eq(0).all()
        assert torch.autograd.grad(y.sum(), x)[0][:2].any(-1).all()

    def test_second_choices_are_dropped_before_first_ones(self):
        """Each of two experts takes two tokens: the last two still get their first choices."""
        chosen = replace(PLAIN, experts=2, top_k=2, capacity_factor=0.5)
        mixture, x = steered(chosen, confidence=1.0), sent_to([0, 0, 1, 1])
        y = mixture(x)
        assert mixture.statistics()["dropped_share"] == pytest.approx(0.5)
        assert y.any(-1).all()
        assert_close(y, slow(mixture, x), 1e-5)

    def test_evaluation_drops_nothing_and_sees_one_token_at_a_time(self):
        chosen = replace(PLAIN, capacity_factor=0.5, top_k=2, jitter=0.3)
        mixture, free = (mixture_of(Mlp(8, 16), c).eval() for c in (chosen, PLAIN))
        free.settings = replace(chosen, capacity_factor=math.inf)
        x = torch.randn(4, 11, 8)
        y = mixture(x)
        assert torch.equal(y, free(x))
        assert y.any(-1).all()
        for image in range(4):
            for token in range(11):
                one = mixture(x[image : image + 1, token : token + 1])
                assert_close(one[0, 0], y[image, token], 1e-5)
        mixture.train()
        assert not mixture(x).any(-1).all()

    def test_jitter_acts_in_training_alone(self):
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, jitter=0.2))
        x = torch.randn(20, 8)
        assert not torch.equal(mixture(x), mixture(x))
        mixture.eval()
        assert torch.equal(mixture(x), mixture(x))
        still = mixture_of(Mlp(8, 16), PLAIN)
        assert torch.equal(still(x), still(x))
        assert torch.equal(still(x), mixture(x))

    def test_jitters_gradients_are_those_of_the_product(self):
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, jitter=0.3))
        x = torch.randn(20, 8, requires_grad=True)
        logits = mixture.router(x)
        noise = _noise(logits.grad_fn.saved_tensors[2], 0.3)
        other = x.detach().clone().requires_grad_()
        weight = mixture.router.weight.detach().clone().requires_grad_()
        expected = F.linear(other * noise, weight)
        assert torch.equal(logits, expected)
        gradient = torch.randn_like(logits)
        logits.backward(gradient)
        expected.backward(gradient)
        assert_close(x.grad, other.grad, 1e-6)
        assert_close(mixture.router.weight.grad, weight.grad, 1e-6)

    def test_jitter_multiplies_the_routers_input_alone_and_by_so_much(self):
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, experts=1, gate="normalized", jitter=0.2))
        x = torch.randn(50, 8)
        assert_close(mixture(x), slow(mixture, x), 1e-5)  # the experts' input has no noise
        mixture.router.weight.data = torch.ones(1, 8)
        one_feature = torch.zeros(1000, 8)
        one_feature[:, 3] = -5.0
        noise = mixture.router(one_feature) / -5.0 - 1
        assert 0.19 < noise.abs().max() <= 0.2 + 1e-6
        assert noise.mean().abs() < 0.02

    def test_jitter_is_even_between_both_of_its_ends(self):
        assert _noise(torch.tensor([0, 255], dtype=torch.uint8), 0.2).tolist() == pytest.approx(
            [0.8, 1.2]
        )
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, experts=8, jitter=0.2))
        mixture.router.weight.data = torch.eye(8)
        noise = mixture.router(torch.ones(2500, 8)).detach().flatten() - 1
        assert noise.min() == pytest.approx(-0.2)
        assert noise.max() == pytest.approx(0.2)
        assert len(noise.unique()) == 256
        assert noise.std().item() == pytest.approx(0.2 / math.sqrt(3), rel=0.03)
        assert noise.view(-1, 8).corrcoef().abs().fill_diagonal_(0).max() < 1  # rows differ

    @given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 20))
    def test_first_come_equals_a_loop(self, experts, capacity):
        taken, wanted = Counter(), []
        for expert in experts:
            taken[expert] += 1
            wanted.append(taken[expert] <= capacity)
        assigned = torch.tensor(experts, dtype=torch.long)
        actual = first_come(assigned, experts=7, capacity=capacity)
        assert actual.dtype == torch.bool
        assert actual.tolist() == wanted

    @given(
        st.integers(1, 9).flatmap(
            lambda experts: st.tuples(
                st.just(experts), st.lists(st.integers(0, experts - 1), min_size=1, max_size=80)
            )
        ),
        st.booleans(),
    )
    def test_slots_are_aligned_groups_in_order(self, case, exact):
        experts, assigned = case
        align = 1 if exact else ALIGN
        slots, ends, rows = _slots(torch.tensor(assigned), experts, exact)
        assert ends.dtype == torch.int32  # as grouped_mm wants it
        begin = 0
        for expert, end in enumerate(ends.tolist()):
            own = [s for s, e in zip(slots.tolist(), assigned, strict=True) if e == expert]
            assert own == list(range(begin, begin + len(own)))  # stable, and without a gap
            assert 0 <= end - begin - len(own) < align
            assert end % align == 0
            begin = end
        assert rows == begin

    def test_groups_have_few_sizes_and_little_in_vain(self):
        counts = torch.arange(5000)
        sizes = _filled(counts)
        vain = sizes - counts
        assert (vain >= 0).all()
        assert not (sizes % ALIGN).any()
        assert (vain < torch.maximum(torch.full_like(counts, ALIGN), counts / SIZES + 1)).all()
        assert [len(sizes[a:b].unique()) for a, b in ((513, 1025), (1025, 2049))] == [16, 16]
        assert sizes[[0, 1, 16, 17, 512, 513, 1025]].tolist() == [0, 16, 16, 32, 512, 544, 1088]
