"""Stages: their state, what they draw at random, and training in few bits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench import artefact, data
from raybench.experiment import Experiment, Parallel, Pipeline, compatible
from raybench.models.blocks import blocks, names
from raybench.parallel.pipeline import schedule
from raybench.parallel.pipeline.boundary import Boundary, Form, forms, message_bytes
from raybench.parallel.pipeline.stage import Stage
from raybench.techniques.prune import Prune
from raybench.training.first_model import laid_out
from raybench.training.loop import Diverged, fit
from raybench.training.staged import Alone, StageRun, choose_cuts, merged
from raybench.training.trainer import train
from trainers.pipeline import base

CUTS = [4]


@pytest.fixture
def small() -> Experiment:
    """ResNet-20 on 129 digits of 8x8 pixels: 2 epochs of 4 steps, in fp32 and 4 chunks."""
    recipe = replace(base.recipe, epochs=2, batch=32, crop=1, precision="fp32", lr=0.05)
    return replace(
        base,
        model="resnet20",
        image_size=8,
        subset=0.1,
        recipe=recipe,
        pipeline=Pipeline(chunks=4),
    )


class Pair:
    """Two ends in one process: messages wait in a dict."""

    def __init__(self, box: dict[tuple[int, int], torch.Tensor], side: int) -> None:
        self._box, self._side = box, side

    def begin(self) -> None: ...

    def send(self, message: torch.Tensor, chunk: int) -> None:
        self._box[self._side, chunk] = message.clone()

    def receive(self, chunk: int) -> torch.Tensor:
        return self._box.pop((1 - self._side, chunk))

    def close(self) -> None: ...


class Two:
    """Two stages in this process, chunk after chunk, for what a schedule does not change."""

    def __init__(self, experiment: Experiment, cuts: list[int] = CUTS) -> None:
        self.experiment, self.images = experiment, data.load(experiment)
        box: dict[tuple[int, int], torch.Tensor] = {}
        self.runs = [
            StageRun(experiment, self.images, rank, cuts, lambda *_, rank=rank: Pair(box, rank))
            for rank in (0, 1)
        ]
        for run in self.runs:
            run.stage.actions = []

    def step(self, x: torch.Tensor, y: torch.Tensor, rate: float, seed: int) -> float:
        first, last = (run.stage for run in self.runs)
        for stage in (first, last):
            stage.optimizer.zero_grad(set_to_none=True)
            stage._losses = []
        chunks = self.experiment.pipeline.chunks
        for chunk, (a, b) in enumerate(zip(x.chunk(chunks), y.chunk(chunks), strict=True)):
            first._forward(chunk, a, None, seed)
            last._forward(chunk, None, b, seed)
            last._backward(chunk)
            first._backward(chunk)
        for stage in (first, last):
            for group in stage.optimizer.param_groups:
                group["lr"] = rate
            stage.optimizer.step()
        return float(torch.stack(last._losses).sum())

    def batches(self, epoch: int = 1) -> Any:
        return data.batches(self.images, self.experiment.recipe, seed=0, epoch=epoch)


def test_chunks_of_one_are_the_whole_batch(small):
    """One stage, one chunk: the losses of `fit`, with no dropout in the model."""
    one = replace(small, pipeline=Pipeline())
    plain = [epoch.metrics["loss"] for epoch in fit(one, data.load(one))]
    runner = Alone(one, data.load(one), None)
    assert [runner.epoch(number)[0].loss for number in (1, 2)] == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("order", schedule.SCHEDULES)
@pytest.mark.parametrize("model", ["resnet20", "mobilenet_v2"])  # the second one drops out
def test_no_schedule_changes_a_loss(small, order, model):
    experiment = replace(small, model=model, pipeline=Pipeline(chunks=4, schedule=order))
    expected = replace(small, model=model)
    losses = [
        Alone(said, data.load(said), None).epoch(1)[0].loss for said in (expected, experiment)
    ]
    assert losses[0] == losses[1]


def test_a_stage_alone_draws_what_it_draws_in_a_pipeline(small):
    """MobileNetV2's dropout lies in the last block: the second stage's, or number 19 of one."""
    one = replace(small, model="mobilenet_v2")
    two = Two(replace(one, pipeline=Pipeline(stages=2, chunks=4)), [8])
    alone = StageRun(one, data.load(one), 0, [])
    x, y = next(two.batches())
    assert two.step(x, y, 0.1, seed=5) == float(alone.stage.step(x, y, 0.1, seed=5))


def test_states_of_stages_make_the_state_of_the_whole(small):
    two = Two(replace(small, pipeline=Pipeline(stages=2, chunks=4)))
    x, y = next(two.batches())
    two.step(x, y, 0.1, seed=1)
    whole = merged([run.state() for run in two.runs])
    model = laid_out(small, 10, torch.device("cpu"))
    model.load_state_dict(whole["model"])
    assert set(whole["optimizer"]) == {name for name, _ in model.named_parameters()}
    # One process goes on from it, and so do stages that are cut elsewhere.
    alone = StageRun(small, data.load(small), 0, [])
    other = Two(replace(small, pipeline=Pipeline(stages=2, chunks=4)), [7])
    for run in (alone, *other.runs):
        run.load(whole)
    expected = two.step(x, y, 0.1, seed=2)
    assert float(alone.stage.step(x, y, 0.1, seed=2)) == expected
    assert other.step(x, y, 0.1, seed=2) == expected


def test_a_resumed_run_ends_alike_and_its_model_loads(small, tmp_path: Path):
    stored, state = tmp_path / "model.safetensors", tmp_path / "state.pt"
    metrics = []
    for epoch in train(small, store=stored):
        metrics.append(epoch.metrics)
        if epoch.number == 1:
            epoch.save(state)
    *_, last = train(small, resume=state)
    for name in ("loss", "validation_loss", "test_loss", "accuracy"):
        assert last.metrics[name] == metrics[-1][name]
    assert stored.stat().st_size == metrics[-1]["model_bytes"]
    assert sum(p.numel() for p in artefact.load(stored).parameters()) == metrics[-1]["parameters"]
    with pytest.raises(ValueError, match="another experiment"):
        next(iter(train(replace(small, seed=1), resume=state)))


@pytest.mark.slow
class TestFewBits:
    """What made the reference project's training NaN: 4 bits, lr 0.4, tensors without a range."""

    @pytest.mark.parametrize("bits", [4, 2])
    def test_a_dead_boundary_stays_finite(self, small, bits):
        pipeline = Pipeline(stages=2, chunks=4, bits=bits)
        two = Two(replace(small, pipeline=pipeline))
        for parameter in two.runs[0].stage.model[-1].parameters():
            parameter.data.zero_()  # with its shortcut's input below: nothing passes
        for parameter in two.runs[0].stage.model[0].parameters():
            parameter.data.zero_()
        losses = [two.step(x, y, 0.4, seed) for seed, (x, y) in enumerate(two.batches())]
        assert all(math.isfinite(loss) for loss in losses)
        for run in two.runs:
            assert all(p.isfinite().all() for p in run.stage.model.parameters())
        health = two.runs[0].boundaries[0].codec.health
        assert health.zero_range_tiles == health.tiles > 0
        assert sum(r.boundaries[0].codec.health.nonfinite_tensors for r in two.runs) == 0

    def test_lr_of_the_reference_stays_finite_over_seeds(self, small):
        for seed in range(20):
            pipeline = Pipeline(stages=2, chunks=2, bits=4)
            two = Two(replace(small, seed=seed, pipeline=pipeline))
            losses = [two.step(x, y, 0.4, step) for step, (x, y) in enumerate(two.batches())]
            assert all(math.isfinite(loss) for loss in losses)

    def test_a_boundary_that_is_not_finite_ends_the_run(self, small):
        two = Two(replace(small, pipeline=Pipeline(stages=2, chunks=4, bits=4)))
        next(iter(two.runs[0].stage.model.parameters())).data[0] = math.nan
        x, y = next(two.batches())
        with pytest.raises(FloatingPointError, match="not finite"):
            two.step(x, y, 0.1, seed=0)


def test_a_loss_that_is_not_finite_is_diverged(small):
    wild = replace(small, recipe=replace(small.recipe, lr=1e30, warmup=0.0))
    with pytest.raises(Diverged, match="epoch 1"):
        list(train(wild))


class TestRefusals:
    def test_chunks_that_do_not_divide_the_batch(self, small):
        with pytest.raises(ValueError, match=r"does not divide recipe.batch 32: use 1, 2, 4 or 8"):
            replace(small, pipeline=Pipeline(chunks=3))

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"stages": 0}, "stages is 0"),
            ({"chunks": 0}, "chunks is 0"),
            ({"link_mb_s": math.nan}, "link_mb_s is nan"),
            ({"stages": 2, "cuts": "three"}, "numbers of blocks"),
            ({"stages": 3, "cuts": "4"}, "make 2 stages, but stages is 3"),
            ({"stages": 3, "cuts": "4,4"}, "in ascending order"),
            ({"stages": 2, "cuts": "0"}, "positions from 1 on"),
        ],
    )
    def test_settings(self, settings, said):
        with pytest.raises(ValueError, match=said):
            Pipeline(**settings)

    def test_what_a_stage_cannot_do(self, small):
        with pytest.raises(ValueError, match=r"use prune\.scope layer"):
            compatible(replace(small, prune=Prune()))
        with pytest.raises(ValueError, match=r"4 pipeline.chunks with 2 parallel.workers"):
            compatible(replace(small, parallel=Parallel(workers=2)))

    def test_cuts_beyond_the_model(self, small):
        images = data.load(small)
        for pipeline, said in (
            (Pipeline(stages=2, cuts="11"), "cut 11 is out of range"),
            (Pipeline(stages=12), "the model has 11 blocks"),
        ):
            with pytest.raises(ValueError, match=said):
                choose_cuts(replace(small, pipeline=pipeline), images)


def test_balanced_cuts_divide_the_time(small):
    experiment = replace(small, pipeline=Pipeline(stages=2, chunks=1))
    (cut,) = choose_cuts(experiment, data.load(experiment))
    assert 2 <= cut <= 9  # of 11 blocks of which none takes half of the time


def test_forms_are_those_of_the_blocks_outputs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    actual = forms(blocks(model), 8, 5, torch.float32)
    assert [form.shape for form in actual] == [(5, 4, 6, 6), (5, 4, 6, 6), (5, 144), (5, 10)]
    assert actual[0].wire_shape == (5, 6, 6, 4)
    assert message_bytes(actual[0], 32) == 5 * 144 * 4
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert isinstance(Boundary(Pair({}, 0), Form((1, 2), torch.float32), 32, None), Boundary)
    assert names(model, blocks(model)[1:2])["0.weight"] == "1.weight"
    assert Stage.__doc__
