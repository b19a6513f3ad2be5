"""Blocks of a model: their composition is the model, and their names lead back to it."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from raybench import artefact
from raybench.experiment import Experiment
from raybench.models import avoid_slow_bf16, build
from raybench.models.blocks import blocks, names

MODELS = {  # by name: how many blocks, and the size of images that is quick and still fits
    "resnet18": (10, 16),
    "resnet20": (11, 16),
    "resnet20_b": (11, 8),
    "resnet44": (23, 8),
    "vgg11": (9, 32),
    "mobilenet_v2": (20, 32),
    "vit60x3": (4, 8),
    "vit_tiny_patch16_224": (13, 8),
    "mixer64x2": (3, 8),
}


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        name: build(name, classes=10, image_size=size).to(memory_format=torch.channels_last)
        for name, (_, size) in MODELS.items()
    }


def images(name: str, count: int = 2) -> torch.Tensor:
    size = MODELS[name][1]
    return torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)


def sent(x: torch.Tensor) -> torch.Tensor:
    """As it arrives in another process: the same values, in memory of their own."""
    form = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return x.detach().clone(memory_format=form)


@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    @pytest.mark.slow
    def test_composition_is_the_model_to_the_last_bit(self, built, name):
        """Outputs, gradients and running statistics, with every block's input a leaf."""
        whole, parts = built[name], copy.deepcopy(built[name])
        x = images(name)
        torch.manual_seed(1)  # of dropout
        expected = whole(x)
        expected.square().sum().backward()

        torch.manual_seed(1)
        given, made = [x], []
        for block in blocks(parts):
            before = given[-1].detach().clone()
            made.append(block(given[-1]))
            assert torch.equal(given[-1], before), "a block wrote into what it was given"
            given.append(sent(made[-1]).requires_grad_())
        assert len(made) == MODELS[name][0]
        assert torch.equal(made[-1], expected)
        gradient = 2 * made[-1].detach()
        for leaf, output in zip(reversed(given[:-1]), reversed(made), strict=True):
            output.backward(gradient)
            gradient = leaf.grad
        for (own, one), (_, other) in zip(
            parts.named_parameters(), whole.named_parameters(), strict=True
        ):
            assert torch.equal(one.grad, other.grad), own
        for (own, one), (_, other) in zip(
            parts.named_buffers(), whole.named_buffers(), strict=True
        ):
            assert torch.equal(one, other), own

    def test_under_autocast_too(self, built, name):
        whole, x = copy.deepcopy(built[name]).eval(), images(name)
        avoid_slow_bf16(whole)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            y = x
            for block in blocks(whole):
                y = block(y)
            assert torch.equal(y, whole(x))

    def test_names_of_all_parts_are_those_of_the_model(self, built, name):
        model = built[name]
        model_blocks = blocks(model)
        for cut in range(1, len(model_blocks)):
            parts = (model_blocks[:cut], model_blocks[cut:])
            merged = {}
            for part in parts:
                state = nn.Sequential(*part).state_dict()
                mapping = names(model, part)
                assert list(mapping) == list(state)
                merged |= {mapping[own]: tensor for own, tensor in state.items()}
            assert set(merged) == set(model.state_dict())
            for key, tensor in model.state_dict().items():
                assert merged[key].data_ptr() == tensor.data_ptr()

    def test_biases_are_still_called_so(self, built, name):
        """By which the optimizer tells what is not decayed."""
        model = built[name]
        for own, plain in names(model, blocks(model)).items():
            assert own.rpartition(".")[2] == plain.rpartition(".")[2]


def test_a_layer_takes_its_norm_along():
    with torch.device("meta"):
        model = build("vgg11_bn", classes=10, image_size=32)
    model_blocks = blocks(model)
    assert len(model_blocks) == 9
    assert [type(layer) for layer in model_blocks[1]] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    ]


def test_linear_layers_of_imagenets_vgg_are_blocks_of_their_own():
    with torch.device("meta"):
        model_blocks = blocks(build("vgg11", classes=10, image_size=224))
        assert len(model_blocks) == 8 + 3
        assert nn.Sequential(*model_blocks)(torch.empty(1, 3, 224, 224)).shape == (1, 10)


def test_a_sequential_of_ones_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert blocks(model) == list(model)
    assert names(model, blocks(model)[2:]) == {"0.weight": "2.weight", "0.bias": "2.bias"}


@pytest.mark.slow
def test_a_stage_holds_no_more_than_its_blocks(built):
    model = copy.deepcopy(built["vgg11"])
    part = blocks(model)[:2]
    names(model, part)
    other = weakref.ref(model.features[20])
    del model
    assert other() is None


def test_stages_make_a_stored_model(built, tmp_path: Path):
    """What two stages trained, put together under the plain model's names, loads as any model."""
    model = copy.deepcopy(built["resnet20"])
    model_blocks = blocks(model)
    merged = {}
    for part in (model_blocks[:4], model_blocks[4:]):
        stage = nn.Sequential(*copy.deepcopy(part))  # of another process
        for parameter in stage.parameters():
            parameter.data.add_(1)
        mapping = names(model, part)
        merged |= {mapping[own]: tensor for own, tensor in stage.state_dict().items()}
    whole = build("resnet20", classes=10, image_size=8)
    whole.load_state_dict(merged)
    experiment = Experiment(family="pruning", model="resnet20", image_size=8)
    artefact.save(whole, replace(experiment), 10, tmp_path / "model.safetensors")
    loaded = artefact.load(tmp_path / "model.safetensors")
    for (name, one), other in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other + 1), name


class TestRefusals:
    def test_a_model_that_is_no_chain(self):
        with pytest.raises(ValueError, match=r"the blocks of a Bilinear are unknown: .*nn\.Seq"):
            blocks(nn.Bilinear(2, 2, 2))

    def test_vits_of_another_form(self):
        with torch.device("meta"):
            model = build("vit60x1", classes=10, image_size=8)
        model.global_pool = "avg"
        with pytest.raises(
            ValueError, match="a pipeline takes ViTs that classify by a class token"
        ):
            blocks(model)
