"""What Quantize leaves: weights that are code times step, and all of it in fp16."""

from __future__ import annotations

import copy

import pytest
import torch
from small_quantized import network, run
from torch import Tensor, nn

from raybench.techniques import Progress
from raybench.techniques.layers.folded_norms import fold
from raybench.techniques.layers.learned_step import largest_code
from raybench.techniques.layers.quantized_layers import quantized_layers
from raybench.techniques.quantize import Quantize


def fp16(values: Tensor) -> bool:
    return torch.equal(values, values.half().float())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("begin", [0.3, 1.0])
class TestFinish:
    def test_weights_are_code_times_step_and_all_is_fp16(self, bits, begin):
        model = run(Quantize(bits=bits, begin=begin))
        Quantize(bits=bits, begin=begin).finish(model, {})
        layers = list(quantized_layers(model).values())
        assert [int(layer.weight_bits) for layer in layers] == [8, bits, bits, 8]
        for layer in layers:
            step = layer.weight_step.view(-1, *(1,) * (layer.weight.ndim - 1))
            code = largest_code(int(layer.weight_bits))
            codes = (layer.weight / step).round()
            assert codes.abs().max() <= code
            assert torch.equal(codes * step, layer.weight)
            assert not layer.weight[layer.weight == 0].signbit().any()
            assert fp16(layer.weight_step)
            assert fp16(layer.input_step)
            assert layer.bias is None or fp16(layer.bias)
        for norm in (model[1], model[4]):
            assert fp16(norm.weight)
            assert fp16(norm.bias)
            assert not norm.running_mean.any()
            assert torch.equal(norm.running_var + norm.eps, torch.ones(8))

    def test_finish_is_idempotent_bit_for_bit(self, bits, begin):
        technique = Quantize(bits=bits, begin=begin)
        model = run(technique)
        technique.finish(model, {})
        twice = copy.deepcopy(model)
        technique.finish(twice, {})
        for name, value in model.state_dict().items():
            assert torch.equal(value, twice.state_dict()[name]), name


def test_a_finished_model_is_the_plain_one_with_its_weights():
    technique = Quantize(bits=3, activation_bits=32)
    model = run(technique)
    technique.finish(model, {})
    plain = network()
    stored = model.state_dict()
    plain.load_state_dict({name: stored[name] for name in plain.state_dict()})
    assert type(plain[0]) is nn.Conv2d
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_finishing_keeps_what_the_network_says():
    """Folding and fp16 are below what a class depends on: the rounding was trained with."""
    technique = Quantize(bits=4)
    model = run(technique).eval()
    x = torch.randn(64, 3, 4, 4)
    before = model(x)
    technique.finish(model, {})
    assert (model(x) - before).abs().max() < 0.05 * before.abs().max()


@pytest.mark.parametrize("activation_bits", [4, 8, 32])
def test_a_state_dict_fills_a_fresh_model_bit_for_bit(activation_bits):
    technique = Quantize(bits=4, activation_bits=activation_bits)
    model = run(technique)
    technique.finish(model, {})
    fresh = network()
    technique.reshape(fresh)
    technique.restructure(fresh, Progress(1, 1), {})
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(model.eval()(x), fresh.eval()(x))


def test_stopping_before_the_beginning_stores_what_was_observed():
    technique = Quantize(bits=4, begin=1.0)
    torch.manual_seed(0)
    model = network()
    technique.reshape(model)
    stopped = copy.deepcopy(model)
    technique.finish(stopped, {})
    layers = quantized_layers(stopped).values()
    assert [int(layer.weight_bits) for layer in layers] == [8, 4, 4, 8]
    assert not any(layer.input_bits for layer in layers)  # nothing was seen: floating point
    assert stopped.eval()(torch.randn(2, 3, 4, 4)).isfinite().all()
    assert not any(layer.weight_bits for layer in quantized_layers(model).values())


def test_folding_a_norm_keeps_it():
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 4)
    x = torch.randn(2, 6, 3, 3)
    before = norm.eval()(x)
    fold(norm)
    assert torch.allclose(norm(x), before, rtol=2e-3, atol=5e-3)
    assert int(norm.num_batches_tracked) == 0
