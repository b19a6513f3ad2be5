"""Models that `recipe.compile auto` compiles on a GPU are one graph each, and compute the same.

The graph is run by PyTorch itself ("aot_eager"): inductor would take a minute for each model.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from technique_cases import TABLE, Case

from raybench.training.first_model import laid_out

COMPILED = [case for case in TABLE if case.active.compiles and case.field != "distill"]


@pytest.mark.nightly
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_a_technique_does_not_cut_the_graph(tiny, case: Case):
    recipe = replace(tiny.recipe, precision="fp32")
    experiment = replace(tiny, model=case.model, recipe=recipe, **{case.field: case.active})
    if case.field == "switch":  # noise is drawn by another function; a kept share has no fixed size
        settings = replace(case.active, jitter=0.0, capacity_factor=float("inf"))
        experiment = replace(experiment, switch=settings)
    model = laid_out(experiment, 10, torch.device("cpu")).train()
    x = torch.randn(8, 3, experiment.image_size, experiment.image_size)
    losses, gradients = [], []
    for compiled in (False, True):
        torch.compiler.reset()
        net = copy.deepcopy(model)
        torch.manual_seed(1)  # dropout
        call = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        loss = F.cross_entropy(call(x), torch.arange(8))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    assert len(gradients[0]) == len(gradients[1]) > 0
    for ours, plain in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.nightly
def test_jitter_does_not_cut_the_graph(tiny):
    from raybench.techniques.switch import Switch

    experiment = replace(tiny, model="vit32x2", switch=Switch(experts=4, blocks="all", jitter=0.1))
    model = laid_out(experiment, 10, torch.device("cpu")).train()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        noisy = [compiled(x) for _ in range(2)]
        clear = model.eval()(x)
    assert not torch.equal(*noisy)
    torch.testing.assert_close(noisy[0], clear, rtol=0.3, atol=0.3)
