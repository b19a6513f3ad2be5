"""Channel cuts of models that are not ours: the classes stay, or the model is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from raybench import artefact
from raybench.data import load
from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.layers.weights import coverage
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels, example, output_layers
from raybench.training.loop import fit
from raybench.training.score import renewed

HALF = PruneChannels(ratio=0.5, round_to=8)


class Net(nn.Module):
    """Two convolutions and a head, which is registered first or is a convolution."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if isinstance(self.head, nn.Linear):
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits
        return self.head(x).mean((2, 3))


class Flat(nn.Module):
    """It takes images of one size alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.fc = nn.Linear(32 * size * size, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.first(x).relu().flatten(1))
        return logits


class Two(nn.Module):
    """The sum of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.stem, self.other = nn.Linear(32, 24), nn.Conv2d(3, 32, 3), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().mean((2, 3))
        logits: Tensor = self.one(x) + self.other(x)
        return logits


MODELS = {
    "head registered first": (lambda: Net(nn.Linear(64, 40)), 40),
    "head is a convolution": (lambda: Net(nn.Conv2d(64, 40, 1)), 40),
    "one size of images": (lambda: Flat(12), 7),
    "two heads": (Two, 24),
    "resnetv2_50": (lambda: build("resnetv2_50", classes=40, image_size=32), 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_classes_stay_and_the_coverage_is_what_shrinks(name):
    make, classes = MODELS[name]
    model = make()
    image = example(model)
    before = {n: parameter.shape for n, parameter in model.named_parameters()}
    HALF.reshape(model)
    acts_on, share = HALF.acts_on(model), coverage(model, HALF.acts_on(model))
    assert HALF.restructure(model, Progress(5, 10), {})
    assert model.eval()(image).shape == (1, classes)
    after = {n: parameter.shape for n, parameter in model.named_parameters()}
    assert sorted(acts_on) == sorted(n for n in before if before[n] != after[n])
    assert share > 0.9


def test_output_layers_are_those_that_no_other_layer_follows():
    model = Two()
    assert set(output_layers(model, torch.zeros(1, 3, 8, 8))) == {model.one, model.other}
    model = Net(nn.Conv2d(64, 5, 1))
    assert output_layers(model, torch.zeros(1, 3, 8, 8)) == [model.head]


def test_a_trial_leaves_the_model_as_it_was():
    model = Net(nn.Linear(64, 40)).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    HALF.reshape(model)
    HALF.acts_on(model)
    assert all(torch.equal(model.state_dict()[n], value) for n, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("ghostnet_100", 32, "its widths would depend on which channels are the smallest"),
        ("deit_tiny_distilled_patch16_224", 224, "fixed number of heads"),
        ("mixer32x2", 32, "its layers do not fit together after a trial"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(name, size, reason):
    model = build(name, classes=10, image_size=size)
    with pytest.raises(ValueError, match=reason) as refusal:
        HALF.reshape(model)
    assert "use a convolutional network" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cut_after_training_is_scored_as_it_is_stored(tiny, tmp_path):
    """The norms of the smaller network are those that the file has and that were scored."""
    recipe = replace(tiny.recipe, epochs=1, renew_norms=2)
    experiment = replace(
        tiny, model="resnet20_b", recipe=recipe, prune_channels=PruneChannels(at=1)
    )
    images, path = load(experiment), tmp_path / "model"
    list(fit(experiment, images, store=path))
    model = artefact.load(path)
    stored = {n: value.clone() for n, value in model.state_dict().items()}
    renewed(model, experiment, images, 1)
    assert all(torch.allclose(stored[n], v, atol=1e-5) for n, v in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("at", "begin"), [(0.5, 0.1), (0.5, 0.6), (1.0, 0.1)])
def test_masks_made_before_the_cut_are_made_anew(tiny, tmp_path, at, begin):
    path = tmp_path / "model"
    experiment = replace(
        tiny,
        model="resnet20_b",
        prune_channels=PruneChannels(at=at),
        prune=Prune(final_sparsity=0.6, begin=begin, end=0.9, frequency=1),
    )
    *_, last = fit(experiment, load(experiment), store=path)
    model = artefact.load(path)
    assert last.metrics["sparsity"] == pytest.approx(0.6, abs=0.02)
    assert experiment.prune.measure(model, {})["sparsity"] == last.metrics["sparsity"]
    assert 0.5 < last.metrics["channels"] < 0.7
