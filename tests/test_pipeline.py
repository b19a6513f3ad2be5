"""Two stages in two processes against one: the certificate that a pipeline changes no gradient."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import gloo
import pytest
import torch
from torch import Tensor

from raybench import data
from raybench.experiment import Pipeline
from raybench.models import build
from raybench.models.blocks import blocks, names
from raybench.parallel.pipeline import balance, schedule
from raybench.parallel.pipeline.boundary import Boundary, forms, message_bytes
from raybench.parallel.pipeline.shared_memory import FOLDER, SharedLink
from raybench.parallel.pipeline.stage import Stage
from raybench.parallel.pipeline.transport import GlooLink, Link
from raybench.training import process
from raybench.training.optim import build_optimizer
from trainers.pipeline import base

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]

BATCH = 8
CUTS = {"resnet18": 4, "mobilenet_v2": 8, "vgg11": 4}
SIZES = {"resnet18": 16, "mobilenet_v2": 16, "vgg11": 32}  # VGG has five poolings
CHUNKS = (1, 2, 4, 8)
TRANSPORTS = ("gloo", "shm")
CASES = list(product(CUTS, schedule.SCHEDULES, TRANSPORTS, CHUNKS))


@cache
def blocks_of(model: str) -> tuple[Any, list[Any]]:
    torch.manual_seed(0)
    whole = build(model, classes=10, image_size=SIZES[model])
    whole.to(memory_format=torch.channels_last)
    return whole, blocks(whole)


@cache
def batch(size: int) -> tuple[Tensor, Tensor]:
    recipe = replace(base.recipe, batch=BATCH, crop=2)
    experiment = replace(base, image_size=size, recipe=recipe)
    return next(data.batches(data.load(experiment), experiment.recipe, seed=0, epoch=1))


def stage(model: str, rank: int, stages: int, chunks: int, order: str, link: Link | None) -> Stage:
    """A stage of the model, with its link to the other."""
    whole, every = copy.deepcopy(blocks_of(model))
    cut = CUTS[model]
    begin, end = balance.bounds([cut][: stages - 1], len(every))[rank]
    boundary = None
    if link is not None:
        form = forms(every, SIZES[model], BATCH // chunks, torch.float32)[cut - 1]
        boundary = Boundary(link, form, 32, None)
    return Stage(
        every[begin:end],
        names(whole, every[begin:end]),
        base.recipe,
        schedule.actions(order, stages, chunks)[rank],
        build_optimizer,
        first=begin,
        chunks=chunks,
        mode="corrected",
        dtype=torch.float32,
        before=boundary if rank else None,
        after=boundary if rank < stages - 1 else None,
    )


def gradients(made: Stage, x: Tensor, y: Tensor) -> dict[str, str]:
    """Digests of gradients and running statistics, of two batches where there are two chunks."""
    for seed in (1, 2) if made.chunks == 2 else (1,):
        made.gradients(x if made.before is None else None, y if made.after is None else None, seed)
    tensors = {name: p.grad for name, p in made.model.named_parameters()}
    tensors |= dict(made.model.named_buffers())
    assert max(float(tensor.abs().max()) for tensor in tensors.values()) > 1e-3
    return {made.names[name]: digest(tensor) for name, tensor in tensors.items()}


def digest(tensor: Tensor) -> str:
    """Of all of a tensor's bits; 2 GB of gradients need not be written to be compared."""
    return hashlib.sha256((tensor + 0).contiguous().numpy().data).hexdigest()  # -0 is 0


def link(transport: str, rank: int, model: str, chunks: int, name: str) -> Link:
    form = forms(blocks_of(model)[1], SIZES[model], BATCH // chunks, torch.float32)[CUTS[model] - 1]
    size = message_bytes(form, 32)
    if transport == "gloo":
        return GlooLink(1 - rank, chunks, size)
    return SharedLink(FOLDER / name, chunks, size, lower=rank == 0)


def measured(rank: int, name: str) -> dict[str, Any]:
    """This stage's gradients in every case; in the first process also those of the whole model."""
    process.prepare(threads=1)
    found: dict[str, Any] = {}
    for case in CASES:
        model, order, transport, chunks = case
        joined = link(transport, rank, model, chunks, f"{name}-{model}-{order}-{chunks}")
        found[str(case)] = gradients(
            stage(model, rank, 2, chunks, order, joined), *batch(SIZES[model])
        )
        joined.close()
    if rank == 0:
        for model, chunks in product(CUTS, CHUNKS):
            alone = stage(model, 0, 1, chunks, "gpipe", None)
            found[f"{model} {chunks}"] = gradients(alone, *batch(SIZES[model]))
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Iterator[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together")
    name = f"raybench-test-{folder.parent.name}"
    yield gloo.together(measured, folder, name)
    assert not list(FOLDER.glob(f"{name}*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_gradients_are_those_of_one_process_to_the_last_bit(together, case):
    model, _, _, chunks = case
    expected = together[0][f"{model} {chunks}"]
    parts = [found[str(case)] for found in together]
    assert not set(parts[0]) & set(parts[1])
    assert parts[0] | parts[1] == expected


def test_pipelines_are_refused_with_advice():
    with pytest.raises(ValueError, match="use 1, 2, 4 or 8"):
        replace(base, recipe=replace(base.recipe, batch=64), pipeline=Pipeline(stages=2, chunks=6))
