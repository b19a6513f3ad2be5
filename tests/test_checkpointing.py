"""Blocks that are computed twice: the same training, with fewer activations."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from raybench import artefact, data
from raybench.experiment import Experiment, Parallel
from raybench.models import build
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.parallel.memory import Activations
from raybench.techniques.quantize import Quantize
from raybench.training.loop import fit


class Block(nn.Module):
    """With all that a second computation could do twice or otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.drop(self.norm(self.conv(x)).relu())
        return x + y


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def trained(model: nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and running statistics after a pass, and the bytes kept for the backward one."""
    torch.manual_seed(1)
    x = torch.randn(8, 3, 12, 12)
    activations = Activations(x)
    with activations:
        loss = model(x).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients | dict(model.named_buffers()), activations.bytes


def test_gradients_statistics_and_masks_are_the_same_to_the_last_bit():
    plain = Stack()
    saving = copy.deepcopy(plain)
    checkpoint_blocks(saving)
    assert list(saving.state_dict()) == list(plain.state_dict())
    (ours, kept), (theirs, all_of_it) = trained(saving), trained(plain)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert int(ours["blocks.0.norm.num_batches_tracked"]) == 1
    assert kept < all_of_it / 2


def test_a_copy_computes_with_its_own_weights():
    model = Stack()
    checkpoint_blocks(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(torch.randn(2, 3, 8, 8)).any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet20", "mobilenet_v2", "resnet10t"])
def test_a_run_ends_bit_for_bit_alike(tiny: Experiment, model: str, tmp_path: Path):
    """resnet10t is timm's, whose own second pass would count running statistics twice."""
    tiny = replace(tiny, model=model, image_size=32 if model == "resnet10t" else 8)
    stored = []
    for checkpointing in (False, True):
        path = tmp_path / str(checkpointing)
        experiment = replace(tiny, parallel=Parallel(checkpointing=checkpointing))
        for _ in fit(experiment, data.load(experiment), store=path):
            pass
        stored.append(artefact.load(path).state_dict())
    for name, value in stored[0].items():
        assert torch.equal(value, stored[1][name]), name


@pytest.mark.slow
def test_beside_weights_that_are_rounded(tiny, tmp_path):
    rounded = replace(tiny, quantize=Quantize(bits=4, begin=0.4))
    losses = []
    for checkpointing in (False, True):
        experiment = replace(rounded, parallel=Parallel(checkpointing=checkpointing))
        losses.append([e.metrics["loss"] for e in fit(experiment, data.load(experiment))])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_model_without_stacks_of_blocks_is_refused():
    for model in (build("vgg11", classes=10, image_size=32), nn.Linear(3, 10)):
        with pytest.raises(ValueError, match="use a ViT or a ResNet"):
            checkpoint_blocks(model)
