"""Feed-forwards of a model: two linear layers with an activation between them.

form                                    examples
a module that is the chain              timm's Mlp (ViT, DeiT, BEiT, Swin, ConvNeXt, a mixer's
                                        channels), torchvision's MLPBlock, an nn.Sequential
a part of an nn.Sequential              torchvision's ConvNeXt, a norm before the layers
a part of a module of another shape     nn.TransformerEncoderLayer, a block with a residual
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from raybench.techniques.layers.chain import Chain, chain, narrows, reason, runs
from raybench.techniques.layers.shared import shared

LIKE = re.compile(r"mlp|ffn|feed_?forward|swiglu", re.IGNORECASE)
"""Classes that look like feed-forwards: if one has no chain, the user gets the reason."""
NOT_LIKE = re.compile(r"head$|squeeze|mixture|experts", re.IGNORECASE)
OF_TOKENS = re.compile(r"(mlp|ff|mix\w*)_?tokens?|tokens?_?(mlp|ff|mix\w*)", re.IGNORECASE)
"""Names of a mixer's feed-forwards that mix tokens: their rows are channels."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward of a model, or a module that only looks like one."""

    path: str
    """Path of the module that is the chain, or that holds its layers as children."""
    chain: Chain | None
    children: tuple[str, ...] = ()
    """Names of the layers in that module, from the first to the second; empty if the module is
    nothing but the chain."""
    reason: str = ""
    """Why `chain` is None, if it is."""

    @property
    def of_tokens(self) -> bool:
        return mixes_tokens(self.path)

    def replace(self, model: nn.Module, module: nn.Module) -> None:
        """Replaces the chain by a module."""
        if not self.children:
            model.set_submodule(self.path, module)
            return
        holder = model.get_submodule(self.path)
        setattr(holder, self.children[0], module)
        for name in self.children[1:]:
            setattr(holder, name, nn.Identity())
        without_fast_path(holder)


def mixes_tokens(path: str) -> bool:
    return any(OF_TOKENS.fullmatch(part) for part in path.split("."))


def without_fast_path(holder: nn.Module) -> None:
    """Disables nn.TransformerEncoderLayer's fast evaluation kernel, which reads its layers' weights
    and bypasses the layers."""
    if isinstance(holder, nn.TransformerEncoderLayer):
        holder.activation_relu_or_gelu = 0


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """Every feed-forward of the model, and modules that look like one, in module order."""
    tied = shared(model)
    listed: list[FeedForward] = []
    for path, module in model.named_modules():
        if NOT_LIKE.search(type(module).__name__):
            continue
        for names, whole in runs(module):
            layers = chain(module, names)
            # The root module cannot be replaced.
            children = () if whole and path else _upto_second(module, names, layers)
            numbers = [*layers.first.parameters(), *layers.second.parameters()]
            if tied.intersection(map(id, numbers)):
                why = "its weights are shared with other layers"
                listed.append(FeedForward(path, None, children, why))
            else:
                listed.append(FeedForward(path, layers, children))
    places = {path: place for place, (path, _) in enumerate(model.named_modules())}
    return sorted([*listed, *_lookalikes(model, listed)], key=lambda f: places[f.path])


def _upto_second(module: nn.Module, names: Sequence[str], layers: Chain) -> tuple[str, ...]:
    end = next(i for i, name in enumerate(names) if getattr(module, name) is layers.second)
    return tuple(names[: end + 1])


def _lookalikes(model: nn.Module, listed: Sequence[FeedForward]) -> Iterator[FeedForward]:
    """Modules with the class name of a feed-forward that neither contain one nor are inside one."""
    paths = [f.path for f in listed if f.path]
    for path, module in model.named_modules():
        kind = type(module).__name__
        if not path or not LIKE.search(kind) or NOT_LIKE.search(kind) or narrows(module):
            continue
        if not any(_within(path, other) or _within(other, path) for other in paths):
            paths.append(path)
            yield FeedForward(path, None, reason=f"a {kind} is not one: {reason(module)}")


def _within(inner: str, outer: str) -> bool:
    return f"{inner}.".startswith(f"{outer}.")
