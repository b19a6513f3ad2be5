"""Quantization: the learned step's gradient, the grids, the choice of bits, and what is stored."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import gloo
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raybench.experiment import compatible
from raybench.models import build
from raybench.optim import build_optimizer
from raybench.parallel.ddp import Replicas
from raybench.techniques import Progress
from raybench.techniques.bit_widths import BITS, choose, sensitivity
from raybench.techniques.learned_step import (
    fit_input_grids,
    fit_weight_steps,
    largest_code,
    rounded_input,
    rounded_weight,
)
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import LARGEST_CHANGE, OBSERVED_STEPS, Quantize, fold
from raybench.techniques.quantized_layers import quantizable, quantized_layers
from trainers.pruning import base, train

bit_widths = st.integers(2, 8)
seeds = st.integers(0, 2**20)


# --- The learned step ---------------------------------------------------------------------------


def paper(v: float, s: float, low: int, high: int) -> tuple[float, float, float]:
    """Value, and gradients by v and by s, of one number: equations 1, 3 and 5 of the LSQ paper."""
    if v / s <= low:
        return low * s, 0.0, float(low)
    if v / s >= high:
        return high * s, 0.0, float(high)
    return round(v / s) * s, 1.0, round(v / s) - v / s


def by_the_paper(
    values: Tensor, gradient: Tensor, step: float, low: int, high: int
) -> tuple[list[float], list[float], float]:
    rows = [paper(v, step, low, high) for v in values.flatten().tolist()]
    g = gradient.flatten().tolist()
    by_value = [d * x for (_, d, _), x in zip(rows, g, strict=True)]
    return (
        [r for r, _, _ in rows],
        by_value,
        sum(d * x for (_, _, d), x in zip(rows, g, strict=True)),
    )


class TestLearnedStep:
    @settings(max_examples=40)
    @given(seed=seeds, bits=bit_widths, channels=st.integers(1, 4), step=st.floats(0.01, 2))
    def test_a_weights_gradients_are_the_papers(self, seed, bits, channels, step):
        torch.manual_seed(seed)
        weight = torch.randn(channels, 2, 3, 3, requires_grad=True)
        steps = (torch.rand(channels) * step + 0.01).requires_grad_()
        gradient = torch.randn(weight.shape)
        result = rounded_weight(weight, steps, bits, scale=0.5)
        result.backward(gradient)
        code = largest_code(bits)
        for c in range(channels):
            value, by_weight, by_step = by_the_paper(
                weight[c], gradient[c], float(steps[c].detach()), -code, code
            )
            assert result[c].flatten().tolist() == pytest.approx(value, rel=1e-5, abs=1e-6)
            assert weight.grad[c].flatten().tolist() == pytest.approx(by_weight)
            assert float(steps.grad[c]) == pytest.approx(0.5 * by_step, rel=1e-4, abs=1e-4)

    @settings(max_examples=40)
    @given(seed=seeds, bits=bit_widths, zero=st.floats(0, 1), turned=st.booleans())
    def test_an_inputs_gradients_are_the_papers(self, seed, bits, zero, turned):
        torch.manual_seed(seed)
        codes = 2**bits - 1
        low = -round(zero * codes)
        value = torch.randn(2, 3, 4, 5)
        gradient = torch.randn(value.shape)
        if turned:  # the order in the memory is another, that of the gradient as it was
            value = value.to(memory_format=torch.channels_last)
        value.requires_grad_()
        step = torch.tensor(3 / codes, requires_grad=True)
        result = rounded_input(value, step, low, low + codes, scale=2.0)
        result.backward(gradient)
        expected, by_value, by_step = by_the_paper(
            value, gradient, float(step.detach()), low, low + codes
        )
        assert result.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert value.grad.flatten().tolist() == pytest.approx(by_value)
        assert float(step.grad) == pytest.approx(2 * by_step, rel=1e-3, abs=1e-3)

    def test_a_quarter_of_a_large_batch_stands_for_all_of_it_in_the_steps_gradient(self):
        value = torch.rand(10, 40_000, requires_grad=True)
        step = torch.tensor(0.05, requires_grad=True)
        gradient = torch.randn(value.shape)
        result = rounded_input(value, step, 0, 15)
        result.backward(gradient)
        scaled = value.detach() / 0.05
        inside = scaled < 15
        error = torch.where(inside, scaled.round() - scaled, torch.tensor(15.0))
        assert torch.allclose(result, scaled.round().clamp(0, 15) * 0.05)
        assert torch.allclose(value.grad, gradient * inside)
        expected = (error * gradient)[:3].sum() * 10 / 3
        assert float(step.grad) == pytest.approx(float(expected), rel=1e-3)

    def test_bf16_is_computed_in_fp32(self):
        value = torch.rand(64, 64).bfloat16()
        result = rounded_input(value, torch.tensor(1 / 255), 0, 255)
        exact = rounded_input(value.float(), torch.tensor(1 / 255), 0, 255)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, exact.bfloat16())

    @given(seed=seeds, bits=bit_widths, sparsity=st.floats(0, 1))
    def test_codes_are_in_range_and_zero_stays_zero(self, seed, bits, sparsity):
        torch.manual_seed(seed)
        weight = torch.randn(3, 17) * (torch.rand(3, 17) >= sparsity)
        steps = fit_weight_steps(weight, bits)
        on_grid = rounded_weight(weight, steps, bits)
        codes = on_grid / steps[:, None]
        assert (steps > 0).all()
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert codes.abs().max() <= largest_code(bits) + 1e-4
        assert not on_grid[weight == 0].any()
        assert torch.equal(rounded_weight(on_grid, steps, bits), on_grid)


class TestFit:
    @settings(max_examples=30)
    @given(seed=seeds, bits=bit_widths)
    def test_a_weights_steps_are_near_the_best_of_a_fine_search(self, seed, bits):
        torch.manual_seed(seed)
        weight = torch.randn(2, 40)

        def error(steps: Tensor) -> Tensor:
            return (rounded_weight(weight, steps, bits) - weight).square().sum(1)

        widest = weight.abs().amax(1) / largest_code(bits)
        best = torch.stack([error(widest * k / 200) for k in range(20, 201)]).amin(0)
        found = error(fit_weight_steps(weight, bits))
        assert (found <= error(widest)).all()
        assert (found <= 1.6 * best + 1e-9).all()

    def test_ranges_get_narrower_with_fewer_bits(self):
        weight = torch.randn(1, 20_000)
        widths = [float(fit_weight_steps(weight, b)) * largest_code(b) for b in BITS]
        assert widths == sorted(widths)
        assert widths[0] < 0.5 * widths[-1]

    def test_grids_of_inputs_are_unsigned_after_a_relu_and_shifted_elsewhere(self):
        relu, image = torch.randn(2048).relu(), torch.randn(2048)
        gelu = F.gelu(torch.randn(2048) * 2)
        low, step = fit_input_grids(torch.stack([relu, image, gelu]), torch.tensor([8, 8, 4]))
        zeros = (-low / step).round().tolist()
        assert zeros[0] == 0
        assert 110 <= zeros[1] <= 145
        assert 0 <= zeros[2] <= 2
        for row, lowest, width, bits in zip((relu, image, gelu), low, step, (8, 8, 4), strict=True):
            zero = round(float(-lowest / width))
            on_grid = rounded_input(row, width, -zero, 2**bits - 1 - zero)
            assert (on_grid - row).square().mean() < (0.02 if bits == 4 else 2e-4)


# --- The technique ------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 16),
        nn.GELU(),
        nn.Linear(16, 5),
    )


def run(
    technique: Quantize, steps: int = 8, *, model: nn.Module | None = None, bf16: bool = False
) -> nn.Module:
    """A small network after some steps with the technique, as the loop takes them."""
    torch.manual_seed(0)
    model, memory = model or network(), {}
    technique.reshape(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        technique.restructure(model, Progress(step, steps))
        x, y = torch.randn(16, 3, 4, 4), torch.randint(5, (16,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, steps), memory)
    return model


def fp16(values: Tensor) -> bool:
    return torch.equal(values, values.half().float())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("begin", [0.3, 1.0])
class TestFinish:
    def test_weights_are_code_times_step_and_all_is_fp16(self, bits, begin):
        model = run(Quantize(bits=bits, begin=begin))
        Quantize(bits=bits, begin=begin).finish(model)
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
        technique.finish(model)
        twice = copy.deepcopy(model)
        technique.finish(twice)
        for name, value in model.state_dict().items():
            assert torch.equal(value, twice.state_dict()[name]), name


def test_a_finished_model_is_the_plain_one_with_its_weights():
    technique = Quantize(bits=3, activation_bits=32)
    model = run(technique)
    technique.finish(model)
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
    technique.finish(model)
    assert (model(x) - before).abs().max() < 0.05 * before.abs().max()


@pytest.mark.parametrize("activation_bits", [4, 8, 32])
def test_a_state_dict_fills_a_fresh_model_bit_for_bit(activation_bits):
    technique = Quantize(bits=4, activation_bits=activation_bits)
    model = run(technique)
    technique.finish(model)
    fresh = network()
    technique.reshape(fresh)
    technique.restructure(fresh, Progress(1, 1))
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(model.eval()(x), fresh.eval()(x))


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0])
def test_every_input_has_its_grid_in_runs_of_any_length(steps, begin):
    technique = Quantize(begin=begin)
    model = run(technique, steps)
    technique.finish(model)
    layers = list(quantized_layers(model).values())
    assert all(layer.input_step > 0 for layer in layers)
    assert all(layer.input_bits == 8 for layer in layers)
    zeros = [int(layer.input_zero_point) for layer in layers]
    assert zeros[1] == zeros[2] == 0  # after a ReLU
    assert zeros[0] > 50  # an image
    assert zeros[3] > 0  # after a GELU


def test_inputs_are_observed_in_the_last_steps_before_the_beginning_alone():
    technique, model, memory = Quantize(begin=0.5), network(), {}
    technique.reshape(model)
    steps, watched = 4 * OBSERVED_STEPS, []
    for step in range(steps):
        technique.restructure(model, Progress(step, steps))  # as after a resume in mid-epoch
        watched += [step] if model[0].observing else []
        technique.after_step(model, Progress(step + 1, steps), memory)
        assert model[0].observing == (OBSERVED_STEPS <= step + 1 < 2 * OBSERVED_STEPS)
    assert watched == [*range(OBSERVED_STEPS, 2 * OBSERVED_STEPS)]


def test_before_the_beginning_it_is_the_plain_network_and_evaluation_changes_nothing():
    technique = Quantize(begin=1.0)
    model = network()
    plain = copy.deepcopy(model)
    technique.reshape(model)
    technique.restructure(model, Progress(0, 4))
    x = torch.randn(8, 3, 4, 4)
    assert torch.equal(model(x), plain(x))
    before = copy.deepcopy(model.state_dict())
    model.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_parameter_has_a_gradient_at_every_step():
    """DDP would wait for it, and the fused SGD wants moments for all of a group or for none."""
    for technique in (Quantize(begin=0.0), Quantize(begin=1.0), Quantize(activation_bits=32)):
        model = run(technique, 2)
        model(torch.randn(2, 3, 4, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_stopping_before_the_beginning_stores_what_was_observed():
    technique = Quantize(bits=4, begin=1.0)
    torch.manual_seed(0)
    model = network()
    technique.reshape(model)
    stopped = copy.deepcopy(model)
    technique.finish(stopped)
    layers = quantized_layers(stopped).values()
    assert [int(layer.weight_bits) for layer in layers] == [8, 4, 4, 8]
    assert not any(layer.input_bits for layer in layers)  # nothing was seen: floating point
    assert stopped.eval()(torch.randn(2, 3, 4, 4)).isfinite().all()
    assert not any(layer.weight_bits for layer in quantized_layers(model).values())


def test_a_step_changes_by_a_tenth_at_most():
    model, memory = network(), {}
    technique = Quantize(begin=0.0)
    technique.reshape(model)
    technique.restructure(model, Progress(0, 10))
    model(torch.randn(2, 3, 4, 4))
    technique.after_step(model, Progress(1, 10), memory)
    before = model[3].weight_step.detach().clone()
    with torch.no_grad():
        model[3].weight_step[:4] -= 100.0
        model[3].weight_step[4:] += 100.0
    technique.after_step(model, Progress(2, 10), memory)
    assert torch.allclose(model[3].weight_step[:4], before[:4] * (1 - LARGEST_CHANGE))
    assert torch.allclose(model[3].weight_step[4:], before[4:] * (1 + LARGEST_CHANGE))


def test_steps_are_learned_and_never_decayed():
    model = run(Quantize(bits=4, activation_bits=4, begin=0.2), 10)
    for layer in quantized_layers(model).values():
        assert layer.weight_step.grad.any()
        assert layer.input_step.grad
    groups = build_optimizer(model, base.recipe).param_groups
    steps = {id(p) for n, p in model.named_parameters() if n.endswith("_step")}
    assert len(steps) == 8
    for group in groups:
        if steps & {id(parameter) for parameter in group["params"]}:
            assert group["weight_decay"] == 0
            assert 0 < group["lr_scale"] < 1


def worker(rank: int) -> dict[str, Tensor]:
    """What one of two workers has after steps on images of its own."""
    technique, memory = Quantize(begin=0.5, budget_bytes=1900), {}
    torch.manual_seed(0)
    model, replicas = network(), Replicas()
    technique.reshape(model)
    wrapped = replicas.wrap(model)
    optimizer = replicas.optimizer(wrapped, base.recipe)
    torch.manual_seed(rank)
    for step in range(6):
        technique.restructure(model, Progress(step, 6))
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(torch.randn(8, 3, 4, 4) + rank), torch.randint(5, (8,)))
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, 6), memory)
    replicas.average_buffers(model)
    return model.state_dict()


@pytest.mark.workers
def test_workers_that_see_other_images_keep_the_same_steps_and_bits(tmp_path):
    one, other = gloo.together(worker, tmp_path)
    assert any(name.endswith("input_step") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert one["3.weight_bits"] > 0


def test_training_under_bf16_autocast_lowers_the_loss():
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 4, 4), torch.randint(5, (32,))
    technique, model, memory = Quantize(bits=4, activation_bits=4, begin=0.1), network(), {}
    technique.reshape(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(30):
        technique.restructure(model, Progress(step, 30))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, 30), memory)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[3]


def test_pruned_weights_stay_zero(tiny):
    both = replace(
        tiny,
        recipe=replace(tiny.recipe, precision="bf16"),
        prune=Prune(final_sparsity=0.8, begin=0.1, end=0.6, frequency=2),
        quantize=Quantize(bits=4),
    )
    *_, last = train(compatible(both))
    assert 0.8 <= last.metrics["sparsity"] < 0.95
    assert last.metrics["weight_bits"] == pytest.approx(4, abs=0.1)
    assert last.metrics["bits_by_layer"] == "8 18x4 8"


def test_layers_of_other_techniques_are_left_alone():
    model = build("vit32x2", classes=10, image_size=8)
    Monarch().reshape(model)
    Quantize().reshape(model)
    assert set(quantized_layers(model)) == {"patch_embed.proj", "head"}


def test_a_transformer_is_quantized_in_all_its_linear_layers():
    model = build("vit32x2", classes=5, image_size=4)
    technique = Quantize(bits=4)
    run(technique, 4, model=model)
    technique.finish(model)
    assert len(quantized_layers(model)) == 2 * 4 + 2
    assert technique.measure(model)["bits_by_layer"] == "8 8x4 8"
    zero = model.blocks[0].attn.qkv.input_zero_point
    assert 4 <= int(zero) * 15 / 255 * 17 <= 200  # after a LayerNorm: about the middle


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"bits": 1}, "bits is 1: 2 to 8, or 0"),
            ({"bits": 9}, "bits is 9"),
            ({"activation_bits": 16}, "activation_bits is 16: 2 to 8, or 32"),
            ({"ends_bits": 0}, "ends_bits is 0: 2 to 8"),
            ({"begin": 1.5}, "begin is 1.5"),
            ({"budget_bytes": -1}, "budget_bytes is -1"),
        ],
    )
    def test_values_out_of_range(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            Quantize(**arguments)

    def test_a_budget_that_cannot_be_met_names_the_smallest(self):
        sizes = [8 * 3 * 9, 8 * 8 * 9, 8 * 16 * 16, 16 * 5]
        smallest = math.ceil((8 * (sizes[0] + sizes[3]) + 2 * (sizes[1] + sizes[2])) / 8)
        with pytest.raises(ValueError, match=f"smallest possible is {smallest},"):
            Quantize(budget_bytes=smallest - 1).reshape(network())
        Quantize(budget_bytes=smallest).reshape(network())

    def test_a_model_without_such_layers(self):
        with pytest.raises(ValueError, match="has no layer"):
            Quantize().reshape(nn.Sequential(nn.ReLU()))

    def test_monarch_that_changes_layers_in_training(self, tiny):
        mixed = replace(tiny, monarch=Monarch(mode="dense_to_sparse"), quantize=Quantize())
        with pytest.raises(ValueError, match="quantize has no steps"):
            compatible(mixed)


# --- Bits by sensitivity ------------------------------------------------------------------------


class TestBudget:
    @settings(max_examples=60)
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        seed=seeds,
        share=st.floats(0, 1),
    )
    def test_the_choice_is_that_of_brute_force(self, sizes, seed, share):
        torch.manual_seed(seed)
        costs = [dict(zip(BITS, torch.rand(len(BITS)).tolist(), strict=True)) for _ in sizes]
        least, most = 2 * sum(sizes), 8 * sum(sizes)
        budget = round(least + share * (most - least))

        def cost(bits: tuple[int, ...]) -> float:
            return sum(c[b] for c, b in zip(costs, bits, strict=True))

        fitting = [
            bits
            for bits in itertools.product(BITS, repeat=len(sizes))
            if sum(s * b for s, b in zip(sizes, bits, strict=True)) <= budget
        ]
        found = choose(sizes, costs, budget)
        assert tuple(found) in fitting
        assert cost(tuple(found)) == pytest.approx(min(cost(bits) for bits in fitting))

    def test_a_budget_below_the_least_is_refused(self):
        with pytest.raises(ValueError, match="20 bits are the fewest"):
            choose([10], [dict.fromkeys(BITS, 1.0)], 19)

    def test_sensitivity_is_the_weighted_squared_error(self):
        weight, squared = torch.randn(3, 4), torch.rand(3, 4)
        on_grid = rounded_weight(weight, fit_weight_steps(weight, 3), 3)
        expected = sum(
            g * (w - q) ** 2
            for g, w, q in zip(
                squared.flatten().tolist(),
                weight.flatten().tolist(),
                on_grid.flatten().tolist(),
                strict=True,
            )
        )
        assert sensitivity(weight, squared, 3) == pytest.approx(expected, rel=1e-4)
        assert sensitivity(weight, squared, 8) < sensitivity(weight, squared, 2)

    def test_the_layer_that_matters_gets_the_bits(self):
        model, memory = network(), {}
        technique = Quantize(budget_bytes=1900)
        technique.reshape(model)
        for name, layer in quantized_layers(model).items():
            weight = 1000.0 if name == "3" else 1.0
            memory[f"squared gradient of {name}"] = torch.full_like(layer.weight, weight)
        bits = technique.plan(model, memory)
        assert bits["3"] > bits["7"]
        used = sum(layer.weight.numel() * bits[n] for n, layer in quantized_layers(model).items())
        assert used <= 8 * 1900
        more = {**bits, "7": bits["7"] + 1}
        assert sum(la.weight.numel() * more[n] for n, la in quantized_layers(model).items()) > 15200

    @pytest.mark.parametrize("begin", [0.5, 1.0])
    def test_a_run_keeps_to_its_budget(self, begin):
        technique = Quantize(budget_bytes=1900, begin=begin)
        model = run(technique)
        technique.finish(model)
        layers = quantized_layers(model).values()
        assert sum(la.weight.numel() * int(la.weight_bits) for la in layers) <= 8 * 1900
        assert technique.measure(model)["weight_bits"] == pytest.approx(
            sum(la.weight.numel() * int(la.weight_bits) for la in layers)
            / sum(la.weight.numel() for la in layers)
        )

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_steps_learn_at_the_pace_of_the_bits_that_the_budget_gives(self, bits):
        alike = network()
        shared = copy.deepcopy(alike)
        Quantize(bits=bits).reshape(alike)
        first, *inner, last = (la.weight.numel() for la in quantized_layers(alike).values())
        Quantize(budget_bytes=first + last + bits * sum(inner) // 8).reshape(shared)
        for one, other in zip(*map(quantized_layers, (alike, shared)), strict=True):
            assert one == other
            paces = [quantized_layers(m)[one].lr_scale for m in (alike, shared)]
            assert paces[0] == paces[1]


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


def test_reshaping_draws_no_random_numbers():
    model = network()
    state = torch.get_rng_state()
    quantizable(model, bits=4, activation_bits=8)
    assert torch.equal(state, torch.get_rng_state())
