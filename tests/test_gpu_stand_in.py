"""Every technique and strategy on a stand-in for a GPU: nothing on the wrong device, and no step
that waits; and the stand-in finds each kind of fault that is planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpu_stand_in import StandIn, stand_in
from technique_cases import TABLE, TEACHER, Case
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from raybench import data, parallel
from raybench.data import batches
from raybench.experiment import Experiment, Parallel, Pipeline
from raybench.parallel import STRATEGIES
from raybench.techniques.ema import Ema
from raybench.techniques.switch import Switch
from raybench.training.loop import fit
from raybench.training.replicated import Replicated
from raybench.training.staged import Alone
from raybench.training.staged_runner import StagedRunner
from raybench.training.trainer import train

UNAVOIDABLE = {"expert.py"}
"""Files whose steps wait by a name: an exchange of tokens must know the lengths of its messages."""


def run(
    experiment: Experiment, patch: pytest.MonkeyPatch, begin: Callable[..., Any] = Replicated
) -> StandIn:
    """A whole run on the stand-in: training, evaluation, the file and its score."""
    images = data.load(experiment)
    with stand_in(patch) as watch:
        for epoch in fit(experiment, images, begin=begin):
            assert epoch.metrics["loss"] > 0
    return watch


def augmented(tiny: Experiment) -> Experiment:
    recipe = replace(tiny.recipe, cutout=2, mixup=0.5, label_smoothing=0.1, renew_norms=1)
    return replace(tiny, recipe=recipe)


def clean(watch: StandIn) -> None:
    assert not watch.mixed
    assert not watch.faults


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plain_run_with_all_augmentation_never_waits(tiny, monkeypatch, precision):
    experiment = augmented(tiny)
    recipe = replace(experiment.recipe, precision=precision, optimizer="adamw", lr=1e-3)
    watch = run(replace(experiment, recipe=recipe), monkeypatch)
    clean(watch)
    places = {wait.rpartition(" ")[2].partition(":")[0] for wait in watch.waits}
    assert places <= {"measure.py", "meter.py", "replicated.py"}  # the clock, and the epoch's loss


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_no_technique_waits_or_mixes_devices(tiny, monkeypatch, case: Case):
    if case.field == "distill":
        list(train(replace(tiny, recipe=replace(tiny.recipe, epochs=1)), store=TEACHER))
    experiment = replace(tiny, model=case.model, **{case.field: case.active})
    clean(run(experiment, monkeypatch))


def test_experts_with_a_capacity_drop_the_same_tokens_on_a_gpu(tiny, monkeypatch):
    switch = Switch(experts=4, blocks="all", capacity_factor=0.5, jitter=0.0)
    experiment = replace(tiny, model="vit32x2", switch=switch)
    images = data.load(experiment)
    plain = [epoch.metrics for epoch in fit(experiment, images)]
    clean(run(experiment, monkeypatch))
    with stand_in(monkeypatch):
        on_gpu = [epoch.metrics for epoch in fit(experiment, images)]
    for one, other in zip(plain, on_gpu, strict=True):
        assert other["dropped_share"] == pytest.approx(one["dropped_share"], abs=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_pipeline_of_one_stage_never_waits(tiny, monkeypatch):
    experiment = replace(tiny, pipeline=Pipeline(chunks=2))
    begin = lambda *parts: StagedRunner(*parts, make=Alone)  # noqa: E731
    clean(run(experiment, monkeypatch, begin))


@contextmanager
def two_workers(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the first of two whose collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with patch.context() as inner:
            inner.setattr(dist, "get_backend", lambda *_: "nccl")
            yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if not s.startswith("zero3")])
def test_no_strategy_waits_or_mixes_devices(tiny, monkeypatch, strategy):
    spread = Parallel(workers=2, strategy=strategy)
    experiment = replace(tiny, model="vit32x2", parallel=spread)
    if strategy == "expert":
        experiment = replace(experiment, switch=Switch(experts=4, blocks="all"))
    images = data.load(experiment)
    with two_workers(monkeypatch), stand_in(monkeypatch) as watch:
        Replicated(experiment, images).epoch(1)
    clean(watch)
    named = {wait.rpartition(" ")[2].partition(":")[0] for wait in watch.waits}
    assert named <= {"measure.py", "meter.py", "exchange.py", "replicated.py", *UNAVOIDABLE}


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.detach().numpy(),
    "cpu": lambda x: x.cpu(),
    "to_cpu": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: (x > 0).long().flatten().bincount(),
    "repeat_interleave": lambda x: x.flatten().repeat_interleave((x > 0).long().flatten()),
    "constant": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "blocking_copy": lambda x: torch.ones(3).to(x.device),
    "copy_from_host": lambda x: torch.empty_like(x).copy_(torch.ones(x.shape)),
    "copy_to_host": lambda x: torch.ones(x.shape).copy_(x),
}
MISPLACED: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x + torch.ones(x.shape),
    "index": lambda x: x.flatten()[torch.arange(2)],
    "out": lambda x: x.detach().mul_(torch.ones(x.shape)),
}


def planted(tiny: Experiment, patch: pytest.MonkeyPatch, where: str, act: Any) -> StandIn:
    """A run in which `act` is called on a tensor, in every step or in a technique's hook."""
    with patch.context() as inner:
        if where == "step":
            step = Replicated._step

            def with_fault(self: Replicated, x: Tensor, y: Tensor, rate: float) -> Tensor:
                act(x)
                return step(self, x, y, rate)

            inner.setattr(Replicated, "_step", with_fault)
        else:
            inner.setattr(
                Ema,
                "after_step",
                lambda self, model, *_: act(next(model.parameters()).detach()),
            )
        recipe = replace(tiny.recipe, epochs=1)
        experiment = replace(tiny, recipe=recipe, ema=Ema(decay=0.5))
        images = data.load(experiment)
        with stand_in(patch) as watch:
            Replicated(experiment, images).epoch(1)
    return watch


@pytest.mark.parametrize("where", ["step", "technique"])
def test_every_planted_wait_is_found(tiny, monkeypatch, where):
    missed = [
        name for name, act in PLANTED.items() if not planted(tiny, monkeypatch, where, act).faults
    ]
    assert not missed


@pytest.mark.parametrize("where", ["step", "technique"])
def test_every_tensor_on_the_wrong_device_is_found(tiny, monkeypatch, where):
    missed = [
        name for name, act in MISPLACED.items() if not planted(tiny, monkeypatch, where, act).mixed
    ]
    assert not missed


def test_nothing_is_left_of_the_stand_in(tiny, monkeypatch):
    with stand_in(monkeypatch):
        assert parallel.replicas(Parallel()).workers == 1
    assert not isinstance(torch.zeros(2), type(None))
    x, _ = next(batches(data.load(tiny), tiny.recipe, seed=0, epoch=1))
    assert type(x) is Tensor
    assert x.device.type == "cpu"
