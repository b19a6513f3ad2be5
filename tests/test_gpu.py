"""What only a GPU shows: agreement with the CPU, no wait by torch's own watch, compiled graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raybench import data
from raybench.data import batches
from raybench.training.loop import fit
from raybench.training.replicated import Replicated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def test_batches_are_those_of_the_cpu(tiny):
    images, cuda = data.load(tiny), torch.device("cuda")
    recipe = replace(tiny.recipe, cutout=2, mixup=0.5)
    here = batches(images, recipe, seed=0, epoch=1)
    there = batches(images, recipe, seed=0, epoch=1, device=cuda)
    for (x, y), (x_gpu, y_gpu) in zip(here, there, strict=True):
        assert torch.allclose(x, x_gpu.cpu(), atol=1e-6)
        assert torch.allclose(y, y_gpu.cpu(), atol=1e-6)


def test_a_step_waits_for_nothing_by_torchs_own_watch(tiny):
    images = data.load(tiny)
    runner = Replicated(replace(tiny, recipe=replace(tiny.recipe, compile="off")), images)
    runner.epoch(1)
    device = torch.device("cuda")
    x, y = next(batches(images, tiny.recipe, seed=0, epoch=2, device=device))
    torch.cuda.set_sync_debug_mode("error")
    try:
        # The meter reads the clock in an epoch's first and last steps only.
        runner._watch.epoch(100, tiny.recipe.batch)
        runner._watch._step = 10
        runner._step(x, y, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_run_learns_as_the_plain_one(tiny):
    images, losses = data.load(tiny), {}
    for choice in ("on", "off"):
        experiment = replace(tiny, recipe=replace(tiny.recipe, compile=choice))
        metrics = [epoch.metrics for epoch in fit(experiment, images)]
        losses[choice] = [one["loss"] for one in metrics]
        assert (metrics[-1]["compile_s"] > 0) == (choice == "on")
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)
