"""Structured pruning: cuts whole channels, so the network itself becomes smaller.

torch-pruning (Fang et al. 2023, "DepGraph", arXiv 2301.12900) finds which layers belong together; a
residual stream is one group. Every group loses the same share. So the widths depend only on the
sizes, and a stored model's skeleton can be built without its weights.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Progress, Technique

SIZES = dict.fromkeys((32, 64, 224, *range(8, 257, 4), 288, 299, 320, 384, 448, 512))
"""Image sizes to try: first those that most models take, then small ones, which are fast to try. A
model that flattens its last feature map takes only one size."""

GOLDEN = 0.6180339887  # its multiples, modulo 1, are scattered

BEFORE, LEFT = "channels before", "channels left"  # keys in the memory


def example(model: nn.Module) -> Tensor:
    """An image of a size that the model takes; most convolutional networks take any size.

    Raises:
        ValueError: the model takes no size from 8 to 512 pixels.
    """
    device = next(model.parameters()).device
    for size in SIZES:
        image = torch.zeros(1, 3, size, size, device=device)
        try:
            with evaluation(model), torch.no_grad():
                model(image)
        except Exception:  # a layer that does not take the size may raise anything
            continue
        return image
    raise ValueError("it takes no square image of 8 to 512 pixels")


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module returns to its previous mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def output_layers(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """The layers whose outputs become the model's without passing through another layer.

    They are found in autograd's graph, so it does not matter where they are registered, or what
    pools or flattens their outputs.
    """
    layer_of: dict[Any, nn.Module] = {}

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        layer_of[output.grad_fn] = layer

    hooks = [layer.register_forward_hook(note) for layer in weighted(model)]
    try:
        with evaluation(model), torch.enable_grad():
            logits = model(image.clone().requires_grad_(True) * 1.0)
    finally:
        for hook in hooks:
            hook.remove()
    last: list[nn.Module] = []
    seen, waiting = set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in layer_of:
            last.append(layer_of[node])
        else:
            waiting += [before for before, _ in node.next_functions]
    return last


def cut(model: nn.Module, ratio: float, round_to: int, image: Tensor | None = None) -> None:
    """Removes `ratio` of each group's channels, those of the smallest magnitude, in place.

    Each group keeps a multiple of `round_to` channels, rounded up; a smaller group stays whole. The
    model's inputs and outputs stay too. Cut parameters are replaced by new ones. `image` is an
    `example`, if the caller has one.
    """
    import torch_pruning  # the import takes seconds

    channels_last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    # torch-pruning itself rounds down, and leaves a group whole if that would give 0.
    shares = {
        module: 1 - (left + 0.5) / len(module.weight)
        for module in weighted(model)
        if (left := _left(len(module.weight), ratio, round_to)) < len(module.weight)
    }
    image = example(model) if image is None else image
    # New dicts: torch-pruning's mutable defaults would keep every model ever cut.
    groups: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    # torch-pruning traces in evaluation mode and would leave the model in it.
    with evaluation(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters that belong to no layer
        torch_pruning.pruner.BasePruner(
            model,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=shares,
            ignored_layers=output_layers(model, image),
            **groups,
        ).step()
    if channels_last:
        model.to(memory_format=torch.channels_last)


def trial(model: nn.Module, ratio: float, round_to: int, *, scattered: bool = False) -> nn.Module:
    """A cut copy of the model, where each layer's first (or scattered) channels are the smallest.

    Raises:
        ValueError: the layers do not fit together afterwards, or the output has another shape.
    """
    image, copied = example(model), copy.deepcopy(model)
    images = image.expand(2, -1, -1, -1)  # with one image, the batch axis is ambiguous
    with torch.no_grad():
        for layer in weighted(copied):
            size = torch.arange(1.0, len(layer.weight) + 1, device=layer.weight.device)
            size = size * GOLDEN % 1 if scattered else size
            layer.weight.copy_(size.view(-1, *[1] * (layer.weight.ndim - 1)))
    try:
        with torch.no_grad(), evaluation(copied):
            before = copied(images).shape
            cut(copied, ratio, round_to, image)
            after = copied(images).shape
    except Exception as error:  # from torch-pruning, or from layers that no longer fit together
        reason = " ".join(str(error).split())
        raise ValueError(f"its layers do not fit together after a trial: {reason}") from error
    if after != before:
        raise ValueError(f"its outputs are cut too, from {tuple(before)} to {tuple(after)}")
    return copied


def _left(channels: int, ratio: float, round_to: int) -> int:
    return min(channels, math.ceil(round(channels * (1 - ratio) / round_to, 6)) * round_to)


def weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """All convolutions and linear layers."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def channels(model: nn.Module) -> int:
    """Output channels of all convolutions and linear layers."""
    return sum(len(module.weight) for module in weighted(model))


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Technique):
    """Cuts channels once, and continues training with the smaller network.

    `ratio=0` is the whole network.
    """

    ratio: float = 0.5
    """Share of the channels to remove from each group."""
    round_to: int = 16
    """Widths are multiples of this: int8 kernels are slower with 24 channels than with 32."""
    at: float = 0.2
    """Share of training after which the cut is made, at an epoch's start; 1 cuts after training."""

    columns: ClassVar[Mapping[str, Column]] = {
        "channels": Column(float, "share", "Share of the channels that remain after the cut.")
    }

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}: a share of the channels, in [0, 1)")
        if self.round_to < 1:
            raise ValueError(f"round_to is {self.round_to}: widths are multiples of 1 or more")
        if not 0 <= self.at <= 1:
            raise ValueError(f"at is {self.at}: a share of training, in [0, 1]")

    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(
                strategy,
                "the cut replaces parameters whose optimizer state is sharded over the workers; "
                "use the strategy ddp",
            )
            for strategy in ("zero1", "zero2", "zero3", "zero3_offload")
        ),
        *(
            Apart(
                other,
                f"the cut cannot follow channels through {layers}; use a convolutional network "
                f"without {other}",
            )
            for other, layers in (
                ("switch", "the heads and experts of a transformer"),
                ("monarch", "the blocks of Monarch factors"),
                ("low_rank", "low-rank factors"),
            )
        ),
        Apart(
            "expert",
            "experts are sharded over the workers, and no model with experts can be cut; use ddp",
        ),
        Apart(
            "pipeline",
            "a cut follows connections through the whole model, but a stage has only a part of it; "
            "use pipeline.stages 1",
        ),
    )

    @classmethod
    def candidates(cls, teacher: str) -> tuple[PruneChannels, ...]:
        return tuple(cls(ratio=ratio) for ratio in (0.25, 0.5, 0.75))

    @property
    def active(self) -> bool:
        return bool(self.ratio)

    def acts_on(self, model: nn.Module) -> list[str]:
        """The parameters that shrink."""
        smaller = trial(model, self.ratio, self.round_to)
        shapes = {name: parameter.shape for name, parameter in smaller.named_parameters()}
        return [n for n, parameter in model.named_parameters() if parameter.shape != shapes[n]]

    def reshape(self, model: nn.Module) -> None:
        """Changes nothing yet. Raises ValueError if the model cannot be cut."""
        kind = type(model).__name__
        if any(getattr(module, "fixed_channels", False) for module in model.modules()):
            raise ValueError(
                "prune_channels cannot cut a ResNet whose shortcuts pad with zeros; use one with "
                "shortcut B, such as resnet20_b"
            )
        try:
            for name, module in model.named_modules():
                if hasattr(module, "num_heads"):
                    raise ValueError(f"{name} splits its width into a fixed number of heads")
            one, other = (
                trial(model, self.ratio, self.round_to, scattered=s) for s in (False, True)
            )
            if _shapes(one) != _shapes(other):
                # A stored model's skeleton is built without the weights.
                raise ValueError("its widths would depend on which channels are the smallest")
        except ValueError as error:
            raise ValueError(
                f"prune_channels cannot cut a {kind} ({error}); use a convolutional network, such "
                "as resnet20_b or vgg11"
            ) from error
        if channels(one) == channels(model):
            raise ValueError(
                f"prune_channels.ratio {self.ratio} leaves every width as it is, in multiples of "
                f"{self.round_to}; use a larger ratio or a wider network, such as resnet20x2_b"
            )

    def restructure(self, model: nn.Module, progress: Progress, memory: Memory) -> bool:
        memory.setdefault(BEFORE, torch.tensor(channels(model)))
        return progress.share >= self.at and self._cut_once(model, memory)

    def finish(self, model: nn.Module, memory: Memory) -> None:
        memory.setdefault(BEFORE, torch.tensor(channels(model)))
        self._cut_once(model, memory)

    def _cut_once(self, model: nn.Module, memory: Memory) -> bool:
        if LEFT in memory:
            return False
        cut(model, self.ratio, self.round_to)
        memory[LEFT] = torch.tensor(channels(model))
        return True

    def measure(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        """The share of the channels that remain."""
        return {"channels": int(memory[LEFT]) / int(memory[BEFORE]) if LEFT in memory else 1.0}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
