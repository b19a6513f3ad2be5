"""Pruning beside optimizers that lie in parts on the workers: all have the same zeros."""

from __future__ import annotations

from typing import Any

import gloo
import pytest
import torch
from torch import Tensor, nn

from raybench import parallel
from raybench.experiment import Parallel, Recipe
from raybench.techniques import Progress
from raybench.techniques.prune import Prune
from raybench.training.optim import build_optimizer

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]

STEPS = 6


def trained(rank: int, strategy: str) -> dict[str, Any]:
    """Weights, masks and sparsity after a few steps of this worker."""
    torch.manual_seed(0)
    replicas = parallel.replicas(Parallel(workers=2, strategy=strategy))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    wrapped = replicas.wrap(model)
    optimizer = replicas.spread(build_optimizer(wrapped, Recipe(lr=0.1)))
    prune = Prune(final_sparsity=0.7, begin=0.1, end=0.6, frequency=1)
    memory: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(rank)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        wrapped(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        prune.after_step(model, Progress(step, STEPS), memory, optimizer)
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "masks": memory,
        "sparsity": prune.measure(model, memory)["sparsity"],
    }


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_masks_hold_in_flat_buckets_and_are_the_same_everywhere(tmp_path, strategy):
    one, other = gloo.together(trained, tmp_path, strategy)
    assert one["sparsity"] == other["sparsity"] == pytest.approx(0.7, abs=0.001)
    for part in ("weights", "masks"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert all(bool((one["weights"][n][~mask] == 0).all()) for n, mask in one["masks"].items())
