"""Batch norms that take their statistics anew, of the weights that are stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench import data
from raybench.experiment import Pipeline
from raybench.training.loop import fit
from raybench.training.score import renew_norms
from trainers import pipeline
from trainers.pruning import one_shot


def test_the_statistics_are_the_means_over_the_batches():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=0.3), nn.Dropout(0.5)
    )
    batches = [torch.randn(16, 3, 8, 8) * scale + scale for scale in (1, 2, 4)]
    for x in batches[:2]:
        model(x)
    renew_norms(model, batches)
    conv, norm, _ = model
    entering = [conv(x).transpose(0, 1).flatten(1) for x in batches]
    assert torch.allclose(norm.running_mean, torch.stack([e.mean(1) for e in entering]).mean(0))
    assert torch.allclose(norm.running_var, torch.stack([e.var(1) for e in entering]).mean(0))
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())


def test_norms_without_running_statistics_stay_without():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    renew_norms(model, [torch.randn(4, 3, 2, 2)])
    assert model[0].running_mean is None


def test_a_cut_without_training_on_needs_them(tiny):
    tiny = replace(tiny, prune=replace(one_shot, final_sparsity=0.7))
    images = data.load(tiny)
    told = {}
    for batches in (0, 4):
        recipe = replace(tiny.recipe, epochs=4, renew_norms=batches)
        *_, last = fit(replace(tiny, recipe=recipe), images)
        told[batches] = last.metrics
    assert told[4]["sparsity"] == told[0]["sparsity"] == pytest.approx(0.7, abs=0.001)
    assert told[4]["test_loss"] < told[0]["test_loss"]
    assert told[4]["loss"] == told[0]["loss"]  # training itself is untouched


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tiny, tmp_path):
    tiny = replace(tiny, recipe=replace(tiny.recipe, renew_norms=2))
    images = data.load(tiny)
    whole = []
    for epoch in fit(tiny, images):
        whole.append(epoch.metrics)
        if epoch.number == 1:
            epoch.save(tmp_path / "state.pt")
    (resumed,) = fit(tiny, images, resume=tmp_path / "state.pt")
    for name in ("loss", "accuracy", "validation_loss", "test_loss"):
        assert resumed.metrics[name] == whole[1][name]


def test_a_model_in_chunks_has_them_too(tiny):
    tiny = replace(tiny, family="pipeline", pipeline=Pipeline(chunks=2))
    recipes = [replace(tiny.recipe, renew_norms=batches) for batches in (0, 4)]
    running, renewed = (list(pipeline.train(replace(tiny, recipe=r))) for r in recipes)
    for before, after in zip(running, renewed, strict=True):
        assert before.metrics["loss"] == after.metrics["loss"]
        assert before.metrics["validation_loss"] != after.metrics["validation_loss"]
