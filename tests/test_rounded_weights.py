"""Quantize on weights of every kind: rounded wherever they are read, in training and in files."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from foreign_layers import CLASSES, MODELS, Encoder, Tied, convolutions, images
from packed_models import assert_same_bits
from torch import Tensor, nn

from raybench.artefact import codecs, packed
from raybench.techniques import Progress
from raybench.techniques.layers.learned_step import largest_code
from raybench.techniques.layers.quantized_layers import quantizable
from raybench.techniques.layers.rounded_weights import RoundedWeight, rounded_weights
from raybench.techniques.layers.weights import coverage, weights
from raybench.techniques.quantize import OBSERVED_STEPS, Quantize
from raybench.training.optim import build_optimizer
from trainers.pruning import base

STEPS = 8


def trained(name: str, technique: Quantize, steps: int = STEPS) -> nn.Module:
    """The model after some steps, as the loop takes them; every parameter has its gradient."""
    torch.manual_seed(0)
    model, memory = MODELS[name](), {}
    technique.reshape(model)
    optimizer = build_optimizer(model, base.recipe)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    for step in range(steps):
        technique.restructure(model, Progress(step, steps), memory)
        optimizer.zero_grad()
        F.cross_entropy(model(images()), torch.randint(CLASSES, (8,))).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing  # DDP would wait for them
        optimizer.step()
        technique.after_step(model, Progress(step + 1, steps), memory, optimizer)
    return model


def is_on_grid(value: Tensor, weight: RoundedWeight) -> bool:
    step = weight.step.view(*weight.step.shape, *(1,) * (value.ndim - weight.step.ndim))
    codes = (value / step).round()
    close = torch.allclose(codes * step, value, atol=1e-6)
    return close and bool(codes.abs().max() <= largest_code(weight.bits))


@pytest.mark.parametrize("name", MODELS)
class TestEveryKind:
    def test_all_weights_are_rounded_where_they_are_read(self, name):
        technique = Quantize(bits=3, begin=0.2)
        model = trained(name, technique)
        rounded = rounded_weights(model)
        assert list(rounded) == [weight.name for weight in weights(model)]
        assert [w.bits for w in rounded.values()] == [8, *[3] * (len(rounded) - 2), 8]
        for weight in rounded.values():
            for module, attribute in weight.holders:
                assert is_on_grid(getattr(module, attribute), weight)
            assert not is_on_grid(weight.raw, weight)  # which is trained in full precision
            assert weight.raw.grad.any()
            assert weight.step.grad.any()

    def test_the_weights_and_steps_decide_what_the_model_says(self, name):
        """Another rounded value than the one that is read would not change with the step."""
        model = trained(name, Quantize(bits=3, activation_bits=32, begin=0.2)).eval()
        x = images()
        before = model(x)
        for weight in rounded_weights(model).values():
            with torch.no_grad():
                old = weight.step.clone()
                weight.step.mul_(1.5)
                assert not torch.equal(model(x), before), weight.name
                weight.step.copy_(old)

    @pytest.mark.parametrize("activation_bits", [8, 32])
    def test_a_finished_model_comes_back_bit_for_bit(self, name, activation_bits):
        technique = Quantize(bits=4, activation_bits=activation_bits, begin=0.5)
        model = trained(name, technique)
        technique.finish(model, {})
        x = images()
        model.eval()
        logits = model(x)
        for weight in rounded_weights(model).values():
            module, attribute = weight.holders[0]
            assert torch.equal(weight.raw, getattr(module, attribute))
        fresh = MODELS[name]()
        technique.reshape(fresh)
        technique.restructure(fresh, Progress(1, 1), {})
        stored = {n: t.detach() for n, t in model.state_dict().items()}
        content = packed.opened(packed.encode(model, base, CLASSES))
        assert_same_bits(stored, packed.decode(content, fresh.state_dict()))
        fresh.load_state_dict(packed.decode(content, fresh.state_dict()))
        assert torch.equal(fresh.eval()(x), logits)
        chosen = {n: codecs.choose(n, stored)[0] for n in rounded_weights(model)}
        assert set(chosen.values()) == {"grid"}
        twice = copy.deepcopy(model)
        technique.finish(twice, {})
        assert_same_bits(stored, {n: t.detach() for n, t in twice.state_dict().items()})

    def test_before_the_beginning_it_is_the_plain_model(self, name):
        model = MODELS[name]().eval()
        x = images()
        before = model(x)
        names = set(model.state_dict())
        Quantize().reshape(model)
        assert torch.allclose(model(x), before, atol=1e-5)
        assert names < set(model.state_dict())
        assert {n.rpartition(".")[2] for n in set(model.state_dict()) - names} <= {
            *(f"{w.attribute}{end}" for w in weights(model) for end in ("_step", "_bits")),
            *("input_step", "input_bits", "input_zero_point"),
        }

    def test_what_is_told_is_of_all_of_them(self, name):
        technique = Quantize(bits=4, begin=0.5)
        model = trained(name, technique)
        sizes = {w.name: w.value.numel() for w in weights(model)}
        bits = {n: w.bits for n, w in rounded_weights(model).items()}
        mean = sum(bits[n] * size for n, size in sizes.items()) / sum(sizes.values())
        assert technique.measure(model, {})["weight_bits"] == pytest.approx(mean)
        assert set(technique.acts_on(model)) == set(sizes)
        whole = sum(parameter.numel() for parameter in model.parameters())
        share = coverage(model, technique.acts_on(model))
        assert share == pytest.approx(sum(sizes.values()) / whole)


@pytest.mark.parametrize("bits", [2, 4])
def test_torchs_transformer_says_the_same_with_and_without_its_fast_path(bits):
    technique = Quantize(bits=bits, begin=0.3, activation_bits=4)
    model = trained("encoder", technique)
    technique.finish(model, {})
    x = images(64)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        actual = model.eval()(x)
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            slow = model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        model.train()  # the dropout of it is 0
        assert torch.allclose(model(x), slow, atol=1e-5)
    assert torch.allclose(actual, slow, atol=1e-4)
    assert torch.equal(actual.argmax(1), slow.argmax(1))


def test_a_shared_weight_has_one_step_and_one_value():
    technique = Quantize(bits=3, begin=0.2)
    model = trained("tied", technique)
    assert isinstance(model, Tied)
    assert model.one.weight_step is model.other.weight_step
    assert torch.equal(model.one.weight, model.other.weight)
    assert list(rounded_weights(model)) == ["one.weight", "head.weight"]
    copied = copy.deepcopy(model)
    assert copied.one.weight_step is copied.other.weight_step
    assert len(list(copied.parameters())) == len(list(model.parameters()))


def test_recurrent_and_standardized_weights_are_left_out_and_not_counted():
    from timm.layers import StdConv2d

    model = nn.ModuleDict({"a": nn.LSTM(4, 4), "b": StdConv2d(3, 4, 3), "c": nn.Linear(4, 2)})
    technique = Quantize()
    technique.reshape(model)
    assert technique.acts_on(model) == ["c.weight"]
    assert type(model["a"]) is nn.LSTM
    assert type(model["b"]) is StdConv2d
    with pytest.raises(ValueError, match="has no layer that quantize supports"):
        technique.reshape(nn.LSTM(4, 4))


def test_a_layer_that_another_technique_makes_in_training_is_quantized():
    technique, model, memory = Quantize(bits=4, begin=0.5), convolutions(), {}
    technique.reshape(model)
    steps = 2 * OBSERVED_STEPS
    assert not technique.restructure(model, Progress(2, steps), memory)
    model[4] = nn.Conv1d(12, 6, 3, padding=1)
    assert technique.restructure(model, Progress(4, steps), memory)
    assert not technique.restructure(model, Progress(4, steps), memory)
    technique.finish(model, {})
    assert [w.bits for w in rounded_weights(model).values()] == [8, 4, 4, 8]


def test_a_part_of_the_model_knows_the_ends_of_the_whole():
    technique, model = Quantize(bits=3, begin=0.0), Encoder()
    technique.reshape(model)
    part = model.encoder.layers[0]
    part(torch.randn(4, 8, 24)).sum().backward()
    technique.after_step(part, Progress(1, 4), {}, None)
    assert {w.bits for w in rounded_weights(part).values()} == {8, 3}
    assert part.self_attn.in_proj_weight_bits == 8  # the first of all
    assert part.linear2.weight_bits == 3


def test_steps_of_stacked_weights_are_never_decayed():
    model = trained("experts", Quantize(bits=4))
    steps = {id(p): n for n, p in model.named_parameters() if n.endswith("_step")}
    assert any(p.ndim == 2 for p in model.parameters() if id(p) in steps)
    for group in build_optimizer(model, base.recipe).param_groups:
        for parameter in group["params"]:
            if id(parameter) in steps:
                assert group["weight_decay"] == 0, steps[id(parameter)]


def test_what_is_remembered_of_a_parameter_has_its_shape():
    model, memory, technique = MODELS["experts"](), {}, Quantize(begin=0.5, budget_bytes=20000)
    technique.reshape(model)
    parameters = dict(model.named_parameters())
    for step in range(4):
        F.cross_entropy(model(images()), torch.randint(CLASSES, (8,))).backward()
        technique.after_step(model, Progress(step + 1, 4), memory, None)
        assert memory
        assert all(
            parameters[n].shape == value.shape for n, value in memory.items() if n in parameters
        )
    assert {n for n in parameters if n.endswith("_step")} == set(memory)


def test_the_class_of_a_kind_is_made_once():
    one, other = convolutions(), convolutions()
    for model in (one, other):
        quantizable(model, bits=4, activation_bits=8)
    assert type(one[4]) is type(other[4])
    assert isinstance(one[4], nn.Conv1d)
