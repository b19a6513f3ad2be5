"""Structured pruning: whole channels are cut out, and the network really is smaller.

Which layers belong together (a residual stream is one group) is found by torch-pruning (Fang et al.
2023, "DepGraph", arXiv 2301.12900). Every group loses the same share, so the widths follow from
the sizes alone and a stored model's skeleton has them without its weights.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique


def example(model: nn.Module) -> Tensor:
    """An image that shows how the layers are connected; convolutional networks take this size."""
    return torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device)


def cut(model: nn.Module, ratio: float, round_to: int) -> None:
    """Removes `ratio` of each group's channels, those of the least magnitude, in place.

    What is left of a group is a multiple of `round_to` channels, rounded up; one that has fewer
    stays. The inputs and the outputs of the whole stay too. Parameters that are cut are new ones.
    """
    import torch_pruning  # takes seconds

    modes = [(module, module.training) for module in model.modules()]
    turned = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    # torch-pruning's own rounding goes down, and where that is to 0 it leaves the group whole.
    shares = {
        module: 1 - (left + 0.5) / len(module.weight)
        for module in weighted(model)
        if (left := _left(len(module.weight), ratio, round_to)) < len(module.weight)
    }
    classifier = [module for module in weighted(model) if isinstance(module, nn.Linear)][-1:]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that belong to no layer
        torch_pruning.pruner.BasePruner(
            model,
            example(model),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=shares,
            ignored_layers=classifier,
        ).step()
    for module, training in modes:
        module.training = training  # it has traced the model in evaluation mode
    if turned:
        model.to(memory_format=torch.channels_last)


def _left(channels: int, ratio: float, round_to: int) -> int:
    return min(channels, math.ceil(round(channels * (1 - ratio) / round_to, 6)) * round_to)


def weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """All convolutions and linear layers."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def channels(model: nn.Module) -> int:
    """Output channels of all convolutions and linear layers."""
    return sum(len(module.weight) for module in weighted(model))


def _masks_before_cut(experiment: Any) -> bool:
    """Whether pruning begins before the cut, which waits for an epoch's start."""
    epochs = experiment.recipe.epochs
    cut_after = math.ceil(experiment.prune_channels.at * epochs)
    return 0 < cut_after < epochs and bool(experiment.prune.begin <= cut_after / epochs)


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Technique):
    """Cuts channels once, and trains on with the smaller network.

    `ratio=0` is the whole network.
    """

    ratio: float = 0.5
    """Share of the channels that goes, of each group alike."""
    round_to: int = 16
    """Widths are multiples of this: int8 kernels lose more on 24 channels than 32 cost."""
    at: float = 0.2
    """Share of training after which the cut is made, at an epoch's start; 1 cuts after training."""

    columns: ClassVar[Mapping[str, Column]] = {
        "channels": Column(float, "share", "Channels that the cut has left, of those before it.")
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(strategy, "a cut changes layers that are spread over the workers; take ddp")
            for strategy in ("zero1", "zero2", "zero3", "zero3_offload")
        ),
        Apart("pipeline", "a group of channels crosses stages; take pipeline.stages and chunks 1"),
        Apart(
            "prune",
            "masks made before the cut would not fit after it; take a later prune.begin, or an "
            "earlier prune_channels.at",
            when=lambda experiment: _masks_before_cut(experiment),
            condition="prune.begin is before the cut",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}: a share of the channels, in [0, 1)")
        if self.round_to < 1:
            raise ValueError(f"round_to is {self.round_to}: widths are multiples of 1 or more")
        if not 0 <= self.at <= 1:
            raise ValueError(f"at is {self.at}: a share of training, in [0, 1]")

    @property
    def active(self) -> bool:
        return bool(self.ratio)

    def reshape(self, model: nn.Module) -> None:
        """Notes the width. Raises ValueError where the model cannot be cut."""
        if not self.ratio:
            return
        if any(getattr(module, "fixed_channels", False) for module in model.modules()):
            raise ValueError(
                "prune_channels cannot cut a ResNet whose shortcuts pad with zeros; take one with "
                "shortcut B, as resnet20_b"
            )
        trial = copy.deepcopy(model)
        try:
            cut(trial, self.ratio, self.round_to)
            trial.eval()(example(trial))
        except Exception as error:  # torch-pruning's, or of layers that no longer fit together
            raise ValueError(
                f"prune_channels cannot cut a {type(model).__name__} ({error}); take a "
                "convolutional network, as resnet20_b or vgg11"
            ) from error
        if channels(trial) == channels(model):
            raise ValueError(
                f"prune_channels.ratio {self.ratio} leaves every width as it is, in multiples of "
                f"{self.round_to}; take a larger ratio or a wider network, as resnet20x2_b"
            )
        model.channels_before = channels(model)  # type: ignore[assignment]

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        return progress.share >= self.at and self._cut_once(model)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        self._cut_once(model)

    def _cut_once(self, model: nn.Module) -> bool:
        if not self.ratio or channels(model) != model.channels_before:
            return False
        cut(model, self.ratio, self.round_to)
        return True

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        """Share of the channels that is left."""
        if not self.ratio:
            return {}
        before = model.channels_before
        assert isinstance(before, int)
        return {"channels": channels(model) / before}
