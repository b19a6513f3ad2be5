"""Batch norms that take their statistics anew, of the weights that are stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench import data
from raybench.experiment import Pipeline
from raybench.models import build
from raybench.techniques.prune_channels import PruneChannels
from raybench.training import loop, trainer
from raybench.training.loop import fit
from raybench.training.score import renew_norms, renewed
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


@pytest.mark.slow
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
    running, renewed = (list(trainer.train(replace(tiny, recipe=r))) for r in recipes)
    for before, after in zip(running, renewed, strict=True):
        assert before.metrics["loss"] == after.metrics["loss"]
        assert before.metrics["validation_loss"] != after.metrics["validation_loss"]


@pytest.mark.slow
def test_a_cut_in_the_last_step_is_scored_with_norms_of_the_cut_model(tiny):
    """Norms are renewed after `finish`, so they are those of the stored weights."""
    recipe = replace(tiny.recipe, epochs=4, renew_norms=4)
    tiny = replace(tiny, model="resnet20_b", recipe=recipe)
    tiny = replace(tiny, prune_channels=PruneChannels(ratio=0.5, at=1.0))
    images, kept = data.load(tiny), {}

    def noted(model, *arguments):
        kept["norms"] = [m.running_mean.clone() for m in model.modules() if _is_norm(m)]
        renewed(model, *arguments)
        kept["renewed"] = [m.running_mean.clone() for m in model.modules() if _is_norm(m)]
        kept["channels"] = [len(mean) for mean in kept["renewed"]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "renewed", noted)
        *_, last = fit(tiny, images)
    assert last.metrics["channels"] < 1
    whole = [
        m.num_features
        for m in build("resnet20_b", classes=10, image_size=8).modules()
        if _is_norm(m)
    ]
    assert kept["channels"] != whole  # the cut came first
    assert any(not torch.equal(a, b) for a, b in zip(kept["norms"], kept["renewed"], strict=True))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)
