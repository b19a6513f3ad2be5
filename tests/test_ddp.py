"""Two workers against one: the same gradients, the same scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gloo
import pytest
import torch
import torch.nn.functional as F

from raybench import data
from raybench.experiment import Experiment
from raybench.models import build
from raybench.parallel.ddp import Replicas
from raybench.training.score import evaluate
from trainers.pruning import base

pytestmark = pytest.mark.workers

EXPERIMENT = replace(base, image_size=8, recipe=replace(base.recipe, batch=48, crop=1))


def measured(experiment: Experiment, seed: int) -> dict[str, Any]:
    """What this process finds out, alone or as a worker: gradients of a step, and the scores."""
    images, replicas = data.load(experiment), Replicas()
    torch.manual_seed(seed)
    model = build(experiment.model, classes=images.classes, image_size=experiment.image_size)
    # In evaluation mode a batch norm does not depend on the worker's share of the batch.
    model.to(memory_format=torch.channels_last).eval()
    wrapped = replicas.wrap(model)
    x, y = next(
        data.batches(
            images,
            experiment.recipe,
            seed=experiment.seed,
            epoch=1,
            rank=replicas.rank,
            workers=replicas.workers,
        )
    )
    F.cross_entropy(wrapped(x), y).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    scores = evaluate(model, images, images.validation, replicas)
    model.bn1.running_mean.fill_(float(replicas.rank))
    model.bn1.num_batches_tracked.fill_(7)
    replicas.average_buffers(model)
    return {
        "images": len(x),
        "gradients": gradients,
        "scores": scores,
        "running_mean": model.bn1.running_mean,
        "num_batches_tracked": int(model.bn1.num_batches_tracked),
        "any": [replicas.any(flag) for flag in (False, replicas.rank == 1, True)],
        "total": replicas.total(torch.tensor([1.0, replicas.rank])).tolist(),
    }


def worker(rank: int) -> dict[str, Any]:
    """The findings of one of the workers."""
    # Other first weights in each worker: those of the first one have to win.
    return measured(EXPERIMENT, seed=rank)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return measured(EXPERIMENT, seed=0)


@pytest.fixture(scope="module")
def together(tmp_path_factory, alone) -> list[dict[str, Any]]:
    """The findings of two workers: this process and a second one."""
    return gloo.together(worker, tmp_path_factory.mktemp("workers"))


def test_workers_share_the_batch(alone, together):
    assert alone["images"] == EXPERIMENT.recipe.batch
    assert [found["images"] for found in together] == [24, 24]


def test_gradients_equal_those_of_one_process(alone, together):
    assert len(alone["gradients"]) == 59
    for found in together:
        for name, gradient in alone["gradients"].items():
            assert gradient.abs().max() > 0
            other = found["gradients"][name]
            assert torch.allclose(other, gradient, rtol=1e-5, atol=1e-6), name


def test_scores_equal_those_of_one_process(alone, together):
    accuracy, loss = alone["scores"]
    assert 0 < accuracy < 1
    for found in together:
        assert found["scores"][0] == accuracy
        assert found["scores"][1] == pytest.approx(loss, rel=1e-6)


def test_running_statistics_are_averaged(alone, together):
    assert not alone["running_mean"].any()
    for found in together:
        assert torch.equal(found["running_mean"], torch.full((16,), 0.5))
        assert found["num_batches_tracked"] == 7


def test_a_flag_of_one_worker_reaches_all(alone, together):
    assert alone["any"] == [False, False, True]
    assert [found["any"] for found in together] == [[False, True, True]] * 2


def test_totals_are_over_all_workers(alone, together):
    assert alone["total"] == [1.0, 0.0]
    assert [found["total"] for found in together] == [[2.0, 1.0]] * 2
