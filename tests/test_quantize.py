"""Quantize in training: when inputs are observed, what steps learn, what is left alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import gloo
import pytest
import torch
import torch.nn.functional as F
from small_quantized import network, run
from torch import Tensor, nn

from raybench.experiment import compatible
from raybench.models import build
from raybench.parallel.ddp import Replicas
from raybench.parallel.zero1 import Zero1
from raybench.parallel.zero2 import Zero2
from raybench.techniques import Progress
from raybench.techniques.layers.held_steps import LARGEST_CHANGE
from raybench.techniques.layers.quantized_layers import quantizable, quantized_layers
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import OBSERVED_STEPS, Quantize
from raybench.training.optim import build_optimizer
from raybench.training.trainer import train
from trainers.pruning import base


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0])
def test_every_input_has_its_grid_in_runs_of_any_length(steps, begin):
    technique = Quantize(begin=begin)
    model = run(technique, steps)
    technique.finish(model, {})
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
        technique.restructure(model, Progress(step, steps), {})  # as after a resume in mid-epoch
        watched += [step] if model[0].observing else []
        technique.after_step(model, Progress(step + 1, steps), memory, None)
        assert model[0].observing == (OBSERVED_STEPS <= step + 1 < 2 * OBSERVED_STEPS)
    assert watched == [*range(OBSERVED_STEPS, 2 * OBSERVED_STEPS)]


def test_before_the_beginning_it_is_the_plain_network_and_evaluation_changes_nothing():
    technique = Quantize(begin=1.0)
    model = network()
    plain = copy.deepcopy(model)
    technique.reshape(model)
    technique.restructure(model, Progress(0, 4), {})
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


def test_a_step_changes_by_a_tenth_at_most():
    model, memory = network(), {}
    technique = Quantize(begin=0.0)
    technique.reshape(model)
    technique.restructure(model, Progress(0, 10), {})
    model(torch.randn(2, 3, 4, 4))
    technique.after_step(model, Progress(1, 10), memory, None)
    before = model[3].weight_step.detach().clone()
    with torch.no_grad():
        model[3].weight_step[:4] -= 100.0
        model[3].weight_step[4:] += 100.0
    technique.after_step(model, Progress(2, 10), memory, None)
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


def worker(
    rank: int, kind: type[Replicas] = Replicas, budget_bytes: int = 1900
) -> dict[str, Tensor]:
    """What one of two workers has after steps on images of its own."""
    technique, memory = Quantize(begin=0.5, budget_bytes=budget_bytes), {}
    torch.manual_seed(0)
    model, replicas = network(), kind()
    technique.reshape(model)
    wrapped = replicas.wrap(model)
    optimizer = replicas.spread(build_optimizer(wrapped, base.recipe))
    torch.manual_seed(rank)
    for step in range(6):
        technique.restructure(model, Progress(step, 6), {})
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(torch.randn(8, 3, 4, 4) + rank), torch.randint(5, (8,)))
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, 6), memory, None)
    replicas.average_buffers(model)
    return model.state_dict()


@pytest.mark.workers
@pytest.mark.parametrize(
    ("kind", "budget_bytes"), [(Replicas, 1900), (Replicas, 0), (Zero1, 0), (Zero2, 0)]
)
def test_workers_that_see_other_images_keep_the_same_steps_and_bits(kind, budget_bytes, tmp_path):
    one, other = gloo.together(worker, tmp_path, kind, budget_bytes)
    assert any(name.endswith("input_step") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert one["3.weight_bits"] > 0
    if kind is not Replicas:  # the same averages, in flat parts
        (folder := tmp_path / "ddp").mkdir()
        for name, value in gloo.together(worker, folder, Replicas, budget_bytes)[0].items():
            assert torch.allclose(value.float(), one[name].float(), atol=1e-4), name


def test_training_under_bf16_autocast_lowers_the_loss():
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 4, 4), torch.randint(5, (32,))
    technique, model, memory = Quantize(bits=4, activation_bits=4, begin=0.1), network(), {}
    technique.reshape(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(30):
        technique.restructure(model, Progress(step, 30), {})
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step + 1, 30), memory, None)
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


def test_layers_of_other_techniques_are_rounded_in_their_weights_alone():
    model = build("vit32x2", classes=10, image_size=8)
    Monarch().reshape(model)
    Quantize().reshape(model)
    assert set(quantized_layers(model)) == {"patch_embed.proj", "head"}
    assert model.blocks[0].attn.qkv.factor1_step.shape == model.blocks[0].attn.qkv.factor1.shape[:2]


def test_a_transformer_is_quantized_in_all_its_linear_layers():
    model = build("vit32x2", classes=5, image_size=4)
    technique = Quantize(bits=4)
    run(technique, 4, model=model)
    technique.finish(model, {})
    assert len(quantized_layers(model)) == 2 * 4 + 2
    assert technique.measure(model, {})["bits_by_layer"] == "8 8x4 8"
    zero = model.blocks[0].attn.qkv.input_zero_point
    assert 4 <= int(zero) * 15 / 255 * 17 <= 200  # after a LayerNorm: about the middle


def test_reshaping_draws_no_random_numbers():
    model = network()
    state = torch.get_rng_state()
    quantizable(model, bits=4, activation_bits=8)
    assert torch.equal(state, torch.get_rng_state())


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
        with pytest.raises(ValueError, match="quantize and monarch cannot be combined"):
            compatible(mixed)
