"""Progressive resizing: training begins with small images and ends at full size (Howard 2018,
in the DAWNBench entry of fast.ai; Tan & Le 2021, "EfficientNetV2", section 4).

    side of the images
    whole  ┤              ●──────     in steps of 4 pixels, at the start of an epoch
           │         ●────╵
    first  ┤●────────╵                a step costs about (side / whole)²
           └┴─────────────┴──────▶ epoch
                        until
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique

MULTIPLE = 4  # pixels: two halvings of the side stay whole
SIZES = (64, 48)  # a model that takes both takes images of any size


@dataclass(frozen=True, kw_only=True)
class Progressive(Technique):
    """Shrinks the images of the first epochs; evaluation always uses full size.

    `first=1` is the plain training.
    """

    first: float = 0.625
    """Side of the first epoch's images, as a share of the full side."""
    until: float = 0.7
    """Share of training after which images have full size."""

    columns: ClassVar[Mapping[str, Column]] = {
        "input_side": Column(
            float, "share", "Side of the epoch's training images, relative to full size."
        )
    }
    goals: ClassVar[tuple[str, ...]] = ("accuracy", "train_time")

    apart: ClassVar[tuple[Apart, ...]] = (
        Apart("pipeline", "the stages expect activations of one size; use pipeline.stages 1"),
    )
    compiles: ClassVar[bool] = False  # each size would be compiled again

    def __post_init__(self) -> None:
        if not 0.25 <= self.first <= 1:
            raise ValueError(f"first is {self.first}: a share of the side in [0.25, 1]")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until is {self.until}: a share of training, in [0, 1]")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Progressive, ...]:
        return tuple(cls(first=first) for first in (0.75, 0.625, 0.5))

    @property
    def active(self) -> bool:
        return self.first < 1

    def side_at(self, share: float) -> float:
        """The side of the images, as a share, after a share of training."""
        if share >= self.until:
            return 1.0
        return self.first + (1 - self.first) * share / self.until

    def reshape(self, model: nn.Module) -> None:
        if not _takes_any_size(model):
            raise ValueError(
                f"progressive cannot train a {type(model).__name__} on smaller images, because it "
                "takes one size only; use a convolutional network, such as resnet20"
            )
        model.register_forward_pre_hook(Shrink())

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        """Changes no layer; sets the side of the epoch's images."""
        side = self.side_at(progress.share)
        _shrink(model).side = side
        memory["side"] = torch.tensor(side)
        return False

    def measure(self, model: nn.Module, memory: Memory) -> Mapping[str, float | str]:
        return {"input_side": float(memory["side"])} if "side" in memory else {}


class Shrink:
    """A hook before a model's forward pass that shrinks its images in training."""

    side = 1.0

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not model.training or self.side == 1:
            return None
        return (shrunk(inputs[0], self.side), *inputs[1:])


def shrunk(x_BCSS: Tensor, share: float) -> Tensor:
    """The images with a `share` of their side, as the nearest multiple of 4 pixels."""
    whole = x_BCSS.shape[-1]
    side = min(whole, max(MULTIPLE, round(whole * share / MULTIPLE) * MULTIPLE))
    if side == whole:
        return x_BCSS
    # Without antialias, bilinear resizing to 0.6 of the side skips pixels.
    return F.interpolate(x_BCSS, size=(side, side), mode="bilinear", antialias=True)


def _shrink(model: nn.Module) -> Shrink:
    return next(hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Shrink))


def _takes_any_size(model: nn.Module) -> bool:
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            for size in SIZES:
                model(torch.zeros(1, 3, size, size, device=parameter.device))
    except Exception:  # a layer that does not take the size may raise anything
        return False
    finally:
        for module, training in modes:
            module.training = training
    return True
