"""ZeRO-2 reduces a bucket as soon as its gradients are there, in the midst of the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.experiment import Recipe
from raybench.parallel import buckets
from raybench.parallel.zero1 import Zero1
from raybench.parallel.zero2 import Zero2
from raybench.training.optim import build_optimizer


class Halves:
    """The exchange of two workers of which the other does nothing."""

    def __init__(self) -> None:
        self.reduced = 0

    def reduce_scatter(self, part: Tensor, whole: Tensor) -> None:
        part.copy_(whole.view(2, -1)[0])
        self.reduced += 1

    def all_gather(self, whole: Tensor, part: Tensor) -> None:
        whole.view(2, -1)[0].copy_(part)


@pytest.mark.parametrize(("kind", "early"), [(Zero1, False), (Zero2, True)])
def test_when_a_bucket_is_reduced(kind, early, monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 8 * 8 * 4)  # a layer each
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    strategy: Any = kind()
    strategy.workers, strategy.exchange = 2, Halves()
    seen: list[tuple[int, bool]] = []
    first, last = model[0].weight, model[2].weight
    # Before the strategy's own hook: what had been reduced when the first layer's gradient came.
    first.register_post_accumulate_grad_hook(
        lambda _: seen.append((strategy.exchange.reduced, last.grad is not None))
    )
    strategy.spread(build_optimizer(model, Recipe()))
    assert len(strategy.buckets) == 3
    for _ in range(2):
        model(torch.randn(4, 8)).square().mean().backward()
        assert all(bucket.part.grad is not None for bucket in strategy.buckets)
        for bucket in strategy.buckets:
            bucket.part.grad = None
    # Of the layers behind it both were reduced, and their whole gradients are freed.
    assert seen == ([(2, False), (5, False)] if early else [(0, True), (3, True)])
