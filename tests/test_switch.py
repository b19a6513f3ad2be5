"""Mixtures of experts: token by token against a slow reference, and what keeps them honest."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GluMlp, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from raybench import artefact, loop
from raybench.experiment import Experiment, Recipe
from raybench.measure import count_flops
from raybench.models import build
from raybench.optim import build_optimizer
from raybench.techniques import Batch
from raybench.techniques.experts import ALIGN, SIZES, Experts, _filled, _slots
from raybench.techniques.switch import Mixture, Switch, _noise, first_come, mixtures
from trainers.switch_vit import base, columns, train

UNSEEN = Batch(*[torch.empty(0)] * 3)  # a mixture's penalty is of what it kept
PLAIN = Switch(experts=4, blocks="all", jitter=0.0, balance_loss=0.0, z_loss=0.0)


# --- The slow reference -------------------------------------------------------------------------


def mixture_of(dense: nn.Module, chosen: Switch, *, seed: int = 0) -> Mixture:
    """A mixture of which no two experts are alike, biases included."""
    torch.manual_seed(seed)
    mixture = Mixture(dense, chosen)
    for parameter in mixture.parameters():
        nn.init.normal_(parameter, std=0.3)
    return mixture


def routed(mixture: Mixture, x: Tensor) -> tuple[Tensor, list[list[int]], list[tuple[int, int]]]:
    """Probabilities, each token's experts from the best on, and the (token, expert) kept."""
    chosen, tokens = mixture.settings, len(x)
    p = F.linear(x, mixture.router.weight).softmax(-1)
    order = [sorted(range(chosen.experts), key=row.__getitem__, reverse=True) for row in p.tolist()]
    choices = [row[: chosen.top_k] for row in order]
    capacity: float = math.inf
    if mixture.training and chosen.capacity_factor < math.inf:
        even = Fraction(tokens * chosen.top_k, chosen.experts)
        capacity = math.ceil(Fraction(chosen.capacity_factor) * even)
    taken, kept = Counter(), []
    for rank in range(chosen.top_k):  # first choices go before second ones
        for token in range(tokens):
            expert = choices[token][rank]
            if taken[expert] < capacity:
                taken[expert] += 1
                kept.append((token, expert))
    return p, choices, kept


def slow(mixture: Mixture, x: Tensor) -> Tensor:
    """The mixture by a loop over its assignments; x is (T, D)."""
    p, choices, kept = routed(mixture, x)
    experts, normalized = mixture.experts, mixture.settings.gate == "normalized"
    out = [torch.zeros_like(x[0]) for _ in x]
    for token, expert in kept:
        hidden = F.linear(x[token], experts.weight1[expert], experts.bias1[expert])
        answer = F.linear(F.gelu(hidden), experts.weight2[expert], experts.bias2[expert])
        gate = p[token, expert]
        if normalized and len(choices[token]) == 1:
            gate = gate / gate.detach()
        elif normalized:
            gate = gate / p[token, choices[token]].sum()
        out[token] = out[token] + gate * answer
    y = torch.stack(out)
    if mixture.shared is not None:
        first, second = mixture.shared.fc1, mixture.shared.fc2
        hidden = F.gelu(F.linear(x, first.weight, first.bias))
        y = y + F.linear(hidden, second.weight, second.bias)
    return y


def gradients(y: Tensor, direction: Tensor, x: Tensor, mixture: Mixture) -> dict[str, Tensor]:
    names = ["x", *(name for name, _ in mixture.named_parameters())]
    found = torch.autograd.grad(
        (y.float() * direction).sum(),
        [x, *mixture.parameters()],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, found, strict=True))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, name: str = "y") -> None:
    """Within `tolerance` of the largest value."""
    assert found.shape == wanted.shape
    largest = max(1e-3, float(wanted.detach().abs().max()))
    assert float((found.detach() - wanted.detach()).abs().max()) <= tolerance * largest, name


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
    @settings(max_examples=80)
    @given(cases())
    def test_forward_and_every_gradient(self, case):
        mixture, x = case
        y, wanted = mixture(x), slow(mixture, x.flatten(0, 1)).view(x.shape)
        assert y.dtype == torch.float32
        assert_close(y, wanted, 1e-5)
        direction = torch.randn_like(x)
        found = gradients(y, direction, x, mixture)
        for name, gradient in gradients(wanted, direction, x, mixture).items():
            assert_close(found[name], gradient, 1e-5, name)

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
            found, wanted = (
                technique.penalty(mixture, UNSEEN),
                weights[0] * balance + weights[1] * z,
            )
            assert_close(found, wanted, 1e-5)
            for name, tensor in {"x": x, "router": mixture.router.weight}.items():
                one, other = (
                    torch.autograd.grad(loss, tensor, retain_graph=True)[0]
                    for loss in (found, wanted)
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


# --- The routing --------------------------------------------------------------------------------


def steered(chosen: Switch, *, width: int = 8, confidence: float = 40.0) -> Mixture:
    """A mixture whose router sends a token with the largest feature e to expert e."""
    mixture = mixture_of(Mlp(width, 16), chosen)
    weight = torch.zeros(chosen.experts, width)
    weight[:, : chosen.experts] = confidence * torch.eye(chosen.experts)
    mixture.router.weight.data = weight
    return mixture


def sent_to(experts: list[int], width: int = 8) -> Tensor:
    """A token for each number, which `steered` sends to that expert."""
    return F.one_hot(torch.tensor(experts), width).float()


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
        logits = mixture._logits(x)
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
        noise = mixture._logits(one_feature) / -5.0 - 1
        assert 0.19 < noise.abs().max() <= 0.2 + 1e-6
        assert noise.mean().abs() < 0.02

    @given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 20))
    def test_first_come_equals_a_loop(self, experts, capacity):
        taken, wanted = Counter(), []
        for expert in experts:
            taken[expert] += 1
            wanted.append(taken[expert] <= capacity)
        assigned = torch.tensor(experts, dtype=torch.long)
        found = first_come(assigned, experts=7, capacity=capacity)
        assert found.dtype == torch.bool
        assert found.tolist() == wanted

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


class TestFirstWeights:
    @pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (5, 1), (5, 2)])
    def test_upcycled_experts_equal_the_dense_feed_forward(self, experts, top_k):
        dense = Mlp(10, 24)
        chosen = Switch(experts=experts, top_k=top_k, upcycle=True, gate="normalized", jitter=0.1)
        mixture, x = Mixture(dense, chosen), torch.randn(2, 9, 10)
        for copied in (mixture, mixture.eval()):
            assert_close(copied(x), dense(x), 1e-6)

    def test_a_gate_of_probability_scales_the_copies_down(self):
        dense, x = Mlp(10, 24), torch.randn(7, 10)
        mixture = Mixture(dense, replace(PLAIN, upcycle=True))
        p = mixture.router(x).softmax(-1).amax(-1, keepdim=True)
        assert_close(mixture(x), p * dense(x), 1e-6)

    def test_otherwise_every_expert_has_weights_of_its_own(self):
        dense = Mlp(64, 256)
        experts = Mixture(dense, PLAIN).experts
        assert len(experts) == 4
        for number, weight in (("fc1", experts.weight1), ("fc2", experts.weight2)):
            like = dense.get_parameter(f"{number}.weight").detach()
            assert weight.shape == (4, *like.shape)
            assert len({float(one.detach().sum()) for one in [*weight, like]}) == 5
            for one in weight:
                assert float(one.detach().std()) == pytest.approx(float(like.std()), rel=0.1)
        assert torch.equal(experts.bias1, dense.fc1.bias.expand(4, -1))

    def test_the_dense_one_is_copied_and_not_shared(self):
        dense = Mlp(6, 8)
        before = copy.deepcopy(dense.state_dict())
        experts = Experts(dense, 3)
        for parameter in experts.parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())

    def test_a_shared_expert_is_the_dense_one_itself(self):
        dense = Mlp(6, 8)
        assert Mixture(dense, replace(PLAIN, shared_expert=True)).shared is dense
        assert Mixture(dense, PLAIN).shared is None


# --- What is told about it ----------------------------------------------------------------------


class TestStatistics:
    def test_known_routing_gives_known_figures(self):
        mixture = steered(replace(PLAIN, capacity_factor=1.0))
        mixture(sent_to([0, 0, 0, 1]))
        found = mixture.statistics()
        assert found["load_cv"] == pytest.approx(torch.tensor([3.0, 1, 0, 0]).std(correction=0))
        assert found["dead_experts"] == 2
        assert found["dropped_share"] == pytest.approx(0.5)
        assert found["router_entropy"] == pytest.approx(0.0, abs=1e-6)
        assert found["balance_loss"] == pytest.approx(4 * (0.75**2 + 0.25**2))
        assert found["z_loss"] == pytest.approx(40.0**2)

    def test_an_even_load_is_balanced(self):
        mixture = steered(PLAIN)
        mixture(sent_to([0, 1, 2, 3] * 3))
        found = mixture.statistics()
        assert found["load_cv"] == pytest.approx(0.0, abs=1e-6)
        assert found["balance_loss"] == pytest.approx(1.0)
        assert found["dead_experts"] == found["dropped_share"] == 0

    def test_one_expert_with_everything_has_a_balance_loss_of_all_experts(self):
        mixture = steered(PLAIN)
        mixture(sent_to([1] * 6))
        found = mixture.statistics()
        assert found["balance_loss"] == pytest.approx(4.0)
        assert found["load_cv"] == pytest.approx(math.sqrt(3))
        assert found["dead_experts"] == 3

    @pytest.mark.parametrize("experts", [1, 2, 7])
    def test_a_router_that_knows_nothing(self, experts):
        """Its entropy is log(E), and any load has a balance loss of 1 at uniform probabilities."""
        mixture = mixture_of(Mlp(8, 16), replace(PLAIN, experts=experts))
        mixture.router.weight.data.zero_()
        mixture(torch.randn(10, 8))
        found = mixture.statistics()
        assert found["router_entropy"] == pytest.approx(math.log(experts), abs=1e-6)
        assert found["balance_loss"] == pytest.approx(1.0)
        assert found["z_loss"] == pytest.approx(math.log(experts) ** 2, abs=1e-6)

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
        found = mixture.statistics()
        assert found["balance_loss"] == pytest.approx(4.0)
        assert found["load_cv"] == pytest.approx(1.0)  # loads of .5 and .5, whatever the tokens
        assert found["dead_experts"] == 2
        mixture.eval()
        mixture(sent_to([2] * 4))
        assert mixture.statistics() == found  # evaluation counts for nothing
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
        found = PLAIN.measure(model)
        assert {name: type(value) for name, value in found.items()} == columns
        assert found["dead_experts"] == 3
        assert found["balance_loss"] == pytest.approx((4 + 1) / 2)
        assert PLAIN.measure(build("vit32x2", classes=10, image_size=8)) == {}

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
        chosen.penalty(model, UNSEEN).backward()
        found = list(mixtures(model))
        assert all(mixture.router.weight.grad.any() for mixture in found)
        assert found[-1].experts.weight1.grad is None  # a penalty is the router's business

    def test_adds_the_mixtures_up(self):
        chosen = replace(PLAIN, balance_loss=0.5, z_loss=0.25)
        model = self.model(chosen)
        told = [mixture.statistics() for mixture in mixtures(model)]
        assert len(told) == 2
        wanted = sum(0.5 * found["balance_loss"] + 0.25 * found["z_loss"] for found in told)
        assert float(chosen.penalty(model, UNSEEN).detach()) == pytest.approx(wanted)

    def test_weights_of_zero_add_nothing(self):
        model = self.model(PLAIN)
        penalty = PLAIN.penalty(model, UNSEEN)
        assert float(penalty.detach()) == 0.0
        penalty.backward()
        for mixture in mixtures(model):
            assert mixture.router.weight.grad.eq(0).all()

    def test_is_of_the_last_training_step_alone(self):
        chosen = replace(PLAIN, balance_loss=1.0)
        model = self.model(chosen)
        assert float(chosen.penalty(model, UNSEEN).detach()) > 0
        model.eval()
        model(torch.randn(2, 3, 8, 8))
        assert chosen.penalty(model, UNSEEN) == 0.0

    def test_a_model_can_be_copied_right_after_a_training_step(self):
        chosen = replace(PLAIN, balance_loss=1.0)
        model = self.model(chosen)
        twin = copy.deepcopy(model)
        assert float(chosen.penalty(model, UNSEEN).detach()) > 0
        assert chosen.penalty(twin, UNSEEN) == 0.0
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(twin(x), model(x))
        assert chosen.measure(twin) == chosen.measure(model)


# --- In a model ---------------------------------------------------------------------------------


def tiny(**values: object) -> Experiment:
    """Two blocks of width 32 on 129 digits of 8x8 pixels: 4 steps in fp32."""
    recipe = replace(base.recipe, epochs=1, batch=32, crop=1, precision="fp32")
    experiment = replace(base, model="vit32x2", image_size=8, subset=0.1, recipe=recipe)
    return replace(experiment, **values)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(loop, "batches", fail)


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
        found = [i for i, block in enumerate(model.blocks) if isinstance(block.mlp, Mixture)]
        assert found == replaced
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
            ("resnet20", "all", "ResNetCifar has no transformer blocks: Switch is for ViTs"),
            ("mixer_s32_224", "all", "a MixerBlock has no feed-forward of two linear layers"),
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
        with pytest.raises(ValueError, match="has no feed-forward of two linear layers"):
            Switch(experts=2, blocks="all").reshape(model)

    def test_a_feed_forward_without_biases_is_refused(self):
        model = build("vit32x2", classes=10, image_size=8)
        model.blocks[1].mlp = Mlp(32, 64, bias=False)
        with pytest.raises(ValueError, match="a Block has no feed-forward of two linear layers"):
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
        found = {name: kinds[id(p)] for name, p in mixture.named_parameters()}
        assert mixture.experts.bias1.ndim == 2
        assert {name for name, kind in found.items() if kind == "rest"} == {
            *("experts.bias1", "experts.bias2", "shared.fc1.bias", "shared.fc2.bias")
        }
        assert found["experts.weight1"] == found["router.weight"] == "decayed"


# --- Stored, and started from -------------------------------------------------------------------


class TestStored:
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_gives_the_same_logits(self, tmp_path, top_k):
        chosen = replace(PLAIN, top_k=top_k, capacity_factor=0.5, shared_expert=True)
        experiment = tiny(switch=chosen)
        model = build("vit32x2", classes=10, image_size=8)
        chosen.reshape(model)
        model(torch.randn(2, 3, 8, 8))  # the tally is not empty
        artefact.save(model, experiment, 10, tmp_path / "m")
        back, x = artefact.load(tmp_path / "m"), torch.randn(5, 3, 8, 8)
        assert not back.training
        assert torch.equal(back(x), model.eval()(x))


class TestStartFrom:
    @pytest.fixture
    def dense(self, tmp_path: Path) -> Path:
        """A plain ViT after an epoch."""
        for _ in train(tiny(), store=tmp_path / "dense.safetensors"):
            pass
        return tmp_path / "dense.safetensors"

    def first_weights(self, experiment: Experiment, tmp_path: Path) -> nn.Module:
        """The model before its first step, in effect: the steps are too small to round to any."""
        recipe = replace(experiment.recipe, lr=1e-30)
        for _ in train(replace(experiment, recipe=recipe), store=tmp_path / "now.safetensors"):
            pass
        return artefact.load(tmp_path / "now.safetensors")

    def test_a_plain_model_goes_on(self, dense, tmp_path):
        now = self.first_weights(tiny(start_from=str(dense), seed=3), tmp_path)
        before = artefact.load(dense).state_dict()
        assert all(torch.equal(before[name], value) for name, value in now.state_dict().items())
        fresh = self.first_weights(tiny(seed=3), tmp_path).state_dict()
        assert not torch.equal(fresh["head.weight"], before["head.weight"])

    def test_upcycled_experts_begin_as_the_dense_feed_forward(self, dense, tmp_path):
        switch = replace(PLAIN, blocks="1", upcycle=True, gate="normalized")
        now = self.first_weights(tiny(start_from=str(dense), switch=switch, seed=3), tmp_path)
        model = artefact.load(dense)
        before = model.state_dict()
        same = {name: value for name, value in now.state_dict().items() if name in before}
        assert len(same) == len(before) - 4
        assert all(torch.equal(before[name], value) for name, value in same.items())
        for number in "12":
            for kind in ("weight", "bias"):
                stacked = now.blocks[1].mlp.experts.get_parameter(f"{kind}{number}")
                one = before[f"blocks.1.mlp.fc{number}.{kind}"]
                assert torch.equal(stacked, one.expand_as(stacked))
        x = torch.randn(6, 3, 8, 8)
        assert_close(now(x), model(x), 1e-5)

    def test_experts_that_are_not_upcycled_leave_the_rest(self, dense, tmp_path):
        switch = replace(PLAIN, blocks="1", shared_expert=True)
        now = self.first_weights(tiny(start_from=str(dense), switch=switch), tmp_path)
        before = artefact.load(dense).state_dict()
        assert torch.equal(now.head.weight, before["head.weight"])
        assert torch.equal(now.blocks[1].mlp.shared.fc1.weight, before["blocks.1.mlp.fc1.weight"])
        for one in now.blocks[1].mlp.experts.weight1:
            assert not torch.equal(one, before["blocks.1.mlp.fc1.weight"])


@pytest.mark.usefixtures("no_training")
class TestStartFromIsRefused:
    def refused(self, experiment: Experiment) -> str:
        with pytest.raises(ValueError, match=re.escape(experiment.start_from)) as error:
            next(iter(train(experiment)))
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_missing_file(self, tmp_path):
        said = self.refused(tiny(start_from=str(tmp_path / "nowhere.safetensors")))
        assert "there is no file" in said

    def test_a_folder(self, tmp_path):
        assert "is a folder" in self.refused(tiny(start_from=str(tmp_path)))

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x02\0\0\0\0\0\0\0{}"])
    def test_a_file_of_another_kind(self, tmp_path, content):
        (tmp_path / "m").write_bytes(content)
        said = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "holds no trained model" in said

    @pytest.mark.parametrize(
        ("model", "switch", "differs"),
        [
            ("vit32x3", None, "blocks.2"),
            ("vit48x2", None, ""),
            ("resnet20", None, ""),
            ("vit32x2", PLAIN, "blocks.0.mlp"),
        ],
    )
    def test_another_model(self, tmp_path, model, switch, differs):
        other = build(model, classes=10, image_size=8)
        if switch:
            switch.reshape(other)
        experiment = tiny(model=model, switch=switch)
        artefact.save(other, experiment, 10, tmp_path / "m")
        said = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "is another model" in said
        assert f"they differ in {differs}" in said

    def test_the_same_model_of_other_classes(self, tmp_path):
        other = build("vit32x2", classes=100, image_size=8)
        artefact.save(other, tiny(), 100, tmp_path / "m")
        said = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "is another model" in said
        assert "head." in said
