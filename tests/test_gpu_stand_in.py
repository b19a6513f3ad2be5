"""Every technique on a stand-in for a GPU: nothing on the wrong device, and no step
that waits; and the stand-in finds each kind of fault that is planted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu_stand_in import StandIn, stand_in
from technique_cases import TABLE, TEACHER, Case
from torch import Tensor, nn

from raybench import data, parallel
from raybench.data import batches, images
from raybench.experiment import Experiment, Parallel, Pipeline
from raybench.techniques.ema import Ema
from raybench.techniques.switch import Switch
from raybench.training import replicated
from raybench.training.loop import fit
from raybench.training.replicated import Replicated
from raybench.training.staged import Alone
from raybench.training.staged_runner import StagedRunner
from raybench.training.trainer import train


def run(
    experiment: Experiment, patch: pytest.MonkeyPatch, begin: Callable[..., Any] = Replicated
) -> StandIn:
    """A whole run on the stand-in: training, evaluation, the file and its score."""
    loaded = data.load(experiment)
    with stand_in(patch) as watch:
        for epoch in fit(experiment, loaded, begin=begin):
            assert epoch.metrics["loss"] > 0
    return watch


def augmented(tiny: Experiment) -> Experiment:
    recipe = replace(tiny.recipe, cutout=2, mixup=0.5, label_smoothing=0.1, renew_norms=1)
    return replace(tiny, recipe=recipe)


def clean(watch: StandIn) -> None:
    assert not watch.mixed
    assert not watch.faults


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_plain_run_with_all_augmentation_never_waits(tiny, monkeypatch, precision):
    experiment = augmented(tiny)
    recipe = replace(experiment.recipe, precision=precision, optimizer="adamw", lr=1e-3)
    watch = run(replace(experiment, recipe=recipe), monkeypatch)
    clean(watch)
    places = {wait.rpartition(" ")[2].partition(":")[0] for wait in watch.waits}
    # The clock, the epoch's loss, and for fp16 whether the gradients are finite.
    scaled = {"loss_scale.py"} if precision == "fp16" else set()
    assert places <= {"measure.py", "meter.py", "replicated.py"} | scaled


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_no_technique_waits_or_mixes_devices(tiny, monkeypatch, case: Case):
    if case.field == "distill":
        list(train(replace(tiny, recipe=replace(tiny.recipe, epochs=1)), store=TEACHER))
    experiment = replace(tiny, model=case.model, **{case.field: case.active})
    clean(run(experiment, monkeypatch))


@pytest.mark.slow
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
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_pipeline_of_one_stage_never_waits(tiny, monkeypatch):
    experiment = replace(tiny, pipeline=Pipeline(chunks=2))
    begin = lambda *parts: StagedRunner(*parts, make=Alone)  # noqa: E731
    clean(run(experiment, monkeypatch, begin))


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.detach().numpy(),
    "cpu": lambda x: x.cpu(),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "to_cpu": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "index": lambda x: x.flatten()[torch.arange(2)],
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
    "out": lambda x: x.detach().mul_(torch.ones(x.shape)),
}


def missed(
    tiny: Experiment,
    patch: pytest.MonkeyPatch,
    where: str,
    acts: dict[str, Callable[[Tensor], object]],
    kind: str,
) -> set[str]:
    """The acts that add nothing to the stand-in's `kind`, planted in every step or in a hook."""
    unseen: set[str] = set()
    watches: list[StandIn] = []

    def plant(x: Tensor) -> None:
        listed = getattr(watches[0], kind)
        for name, act in acts.items():
            before = len(listed)
            act(x)
            if len(listed) == before:
                unseen.add(name)

    with patch.context() as inner:
        if where == "step":
            step = Replicated._step

            def with_faults(self: Replicated, x: Tensor, y: Tensor, rate: float) -> Tensor:
                plant(x)
                return step(self, x, y, rate)

            inner.setattr(Replicated, "_step", with_faults)
        elif where == "backward":
            laid_out = replicated.laid_out

            def with_hook(*parts: Any) -> nn.Module:
                model = laid_out(*parts)
                first = next(model.parameters())
                first.register_post_accumulate_grad_hook(lambda p: plant(p.detach()))
                return model

            inner.setattr(replicated, "laid_out", with_hook)
        else:

            def hook(self: Ema, model: nn.Module, *_: Any) -> None:
                plant(next(model.parameters()).detach())

            inner.setattr(Ema, "after_step", hook)
        experiment = replace(tiny, ema=Ema(decay=0.5), subset=0.03)
        images = data.load(experiment)
        with stand_in(patch) as watch:
            watches.append(watch)
            Replicated(experiment, images).epoch(1)
    assert getattr(watch, kind)
    return unseen


@pytest.mark.parametrize("where", ["step", "backward", "technique"])
def test_every_planted_wait_is_found(tiny, monkeypatch, where):
    assert not missed(tiny, monkeypatch, where, PLANTED, "faults")


@pytest.mark.parametrize("where", ["step", "backward", "technique"])
def test_every_tensor_on_the_wrong_device_is_found(tiny, monkeypatch, where):
    assert not missed(tiny, monkeypatch, where, MISPLACED, "mixed")


def test_images_on_a_device_outlive_their_address():
    """Another array at a freed one's address would be taken for it."""
    array = torch.zeros(1000)
    alive = weakref.ref(array)
    images._resident(array, torch.device("meta"))
    del array
    assert alive() is not None
    for number in range(images.MOST_RESIDENT):
        images._resident(torch.full((1000,), float(number)), torch.device("meta"))
    assert alive() is None


def test_nothing_is_left_of_the_stand_in(tiny, monkeypatch):
    with stand_in(monkeypatch):
        assert parallel.replicas(Parallel()).workers == 1
    assert type(torch.zeros(2)) is Tensor
    x, _ = next(batches(data.load(tiny), tiny.recipe, seed=0, epoch=1))
    assert type(x) is Tensor
    assert x.device.type == "cpu"
