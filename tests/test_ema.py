"""EMA: what is evaluated and stored is the average, and training does not see it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench import artefact
from raybench.techniques import Progress
from raybench.techniques.ema import Ema
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.training.trainer import train


def steps(ema: Ema, count: int) -> tuple[nn.Module, dict[str, torch.Tensor], list[dict]]:
    """A model after some random steps, the memory, and the state after each of them."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    memory: dict[str, torch.Tensor] = {}
    states = []
    for step in range(1, count + 1):
        with torch.no_grad():
            for value in [*model.parameters(), model[1].running_mean]:
                value += torch.randn_like(value)
        ema.after_step(model, Progress(step, count), memory, None)
        states.append(copy.deepcopy(model.state_dict()))
    return model, memory, states


@pytest.mark.parametrize("ema", [Ema(decay=0.7, warmup=False), Ema(decay=0.7), Ema(every=3)])
def test_the_average_is_that_of_a_slow_reference(ema):
    model, memory, states = steps(ema, 20)
    values = ema.evaluated(model, memory)
    seen = [state for n, state in enumerate(states, 1) if n % ema.every == 0]
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        average = seen[0][name].double()
        for updates, state in enumerate(seen[1:], 1):
            decay = min(ema.decay, (1 + updates) / (10 + updates)) if ema.warmup else ema.decay
            average = decay * average + (1 - decay) * state[name].double()
        assert torch.allclose(values[name].double(), average, atol=1e-6)
    assert "1.num_batches_tracked" not in values


def test_the_distance_is_relative_to_the_trained_weights():
    ema = Ema(decay=0.5, warmup=False)
    model, memory, states = steps(ema, 3)
    values = ema.evaluated(model, memory)
    ours = torch.cat([value.flatten() for value in values.values()])
    raw = torch.cat([states[-1][name].flatten() for name in values])
    expected = float((ours - raw).norm() / raw.norm())
    assert ema.measure(model, memory)["ema_distance"] == pytest.approx(expected, rel=1e-5)


def test_training_does_not_see_the_average(tiny):
    plain, averaged = (list(train(replace(tiny, ema=ema))) for ema in (None, Ema(decay=0.9)))
    assert [e.metrics["loss"] for e in plain] == [e.metrics["loss"] for e in averaged]
    for before, after in zip(plain, averaged, strict=True):
        assert before.metrics["validation_loss"] != after.metrics["validation_loss"]


def test_pruned_weights_of_the_stored_average_are_zero(tiny, tmp_path):
    both = replace(tiny, prune=Prune(final_sparsity=0.7, begin=0.3, end=0.9), ema=Ema(decay=0.9))
    *_, last = train(both, store=tmp_path / "m")
    weights = [v for n, v in artefact.load(tmp_path / "m").state_dict().items() if v.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.7, abs=0.01)
    assert last.metrics["sparsity"] == pytest.approx(0.7, abs=0.01)


@pytest.mark.slow
def test_grids_are_those_of_the_last_step(tiny, tmp_path):
    """The steps of grids jump when rounding begins; averaged, the model would guess."""
    recipe = replace(tiny.recipe, epochs=4)
    quantized = replace(tiny, subset=0.5, recipe=recipe, quantize=Quantize(bits=8, begin=0.5))
    *_, raw = train(quantized)
    *_, averaged = train(replace(quantized, ema=Ema(decay=0.5)))
    assert averaged.metrics["test_loss"] < 1.5 * raw.metrics["test_loss"]


@pytest.mark.parametrize("values", [{"decay": 1.0}, {"decay": -0.1}, {"every": 0}])
def test_impossible_values_are_refused_by_name(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Ema(**values)
