"""Chain: the layers of a feed-forward in one module, recognized by the module's behaviour.

    x (…, D) ─▶ first ─▶ activation, dropout ─▶ second ─▶ dropout ─▶ (…, D)

A copy of the module runs once on a few numbers. Children whose output is the next one's input form
a chain; names and classes do not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FUNCTIONS: dict[Callable[..., Tensor], type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU}
"""Activations that nn.TransformerEncoderLayer calls as functions."""


@dataclass(frozen=True)
class Chain:
    """The layers of a feed-forward."""

    first: nn.Linear
    between: nn.Module
    """The activation, with its dropout if there is one."""
    second: nn.Linear
    after: nn.Module
    """Dropout after the second layer, or an nn.Identity."""

    def module(self) -> nn.Module:
        """A new module with the same layers, without the last dropout."""
        return nn.Sequential(self.first, self.between, self.second)


def chain_of(module: nn.Module) -> Chain:
    """The layers of a module that is a feed-forward and nothing else. Raises ValueError."""
    for names, whole in runs(module):
        if whole:
            return chain(module, names)
    raise ValueError(f"a {type(module).__name__} is not a feed-forward: {reason(module)}")


def runs(module: nn.Module) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The names of the children in each chain, and whether the module is nothing else.

    If the module has other parts, the chain ends with the second layer; a later dropout stays.
    """
    layers = {n: m for n, m in module.named_children() if isinstance(m, nn.Linear)}
    if len(layers) < 2:
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        has_activation = module.activation in FUNCTIONS or isinstance(module.activation, nn.Module)
        if has_activation and _fit(module.linear1, module.linear2):
            yield ("linear1", "activation", "dropout", "linear2"), False
    elif type(module).forward is nn.Sequential.forward:
        yield from _in_sequence(module)
    else:
        pairs = ((a, b) for a in layers for b in layers if a != b and _fit(layers[a], layers[b]))
        observed = (_observed(module, first, second) for first, second in pairs)
        yield from (names for names in observed if names)


def chain(module: nn.Module, names: Sequence[str]) -> Chain:
    """The chain of the children with these names, which come from `runs`."""
    layers = [_child(module, name) for name in names]
    end = next(i for i, layer in enumerate(layers) if i and isinstance(layer, nn.Linear))
    first, second = layers[0], layers[end]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return Chain(first, _sequence(layers[1:end]), second, _sequence(layers[end + 1 :]))


def is_plain(layer: nn.Module) -> bool:
    """Whether it computes the same as an nn.Linear, from a weight that is a parameter."""
    if not isinstance(layer, nn.Linear) or parametrize.is_parametrized(layer):
        return False
    # A layer prepared for later quantization still counts as an nn.Linear.
    kind = getattr(layer, "class_before", type(layer))
    return bool(kind.forward is nn.Linear.forward)


def narrows(module: nn.Module) -> bool:
    """Whether its two linear layers return another width than they take. The output is then not a
    token but, for example, a position bias."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return (
        len(layers) == 2
        and layers[0].out_features == layers[1].in_features
        and layers[0].in_features != layers[1].out_features
    )


def reason(module: nn.Module) -> str:
    """The reason why a module is not a chain, as a clause."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in module.modules()):
        return "its layers are convolutions"
    if len(layers) < 2:
        return "it has fewer than two linear layers"
    if len(layers) > 2 or layers[0].out_features != layers[1].in_features:
        return "it is gated, or has more than two linear layers"
    if any(layer.bias is None for layer in layers):
        return "its linear layers have no biases"
    if narrows(module):
        return "its output and its input differ in width"
    return "it needs one activation module, with or without a dropout, between its linear layers"


def _fit(first: nn.Module, second: nn.Module) -> bool:
    """Whether the second layer returns to the width of the first one's input, as in a block."""
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)):
        return False
    back = (second.out_features, second.in_features)
    biased = first.bias is not None and second.bias is not None
    both = is_plain(first) and is_plain(second)
    return (first.in_features, first.out_features) == back and biased and both


def _is_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Dropout | nn.Identity)


def _acts(layers: Sequence[nn.Module]) -> bool:
    """Whether there is exactly one elementwise activation, and otherwise only dropouts."""
    acts = [layer for layer in layers if not _is_dropout(layer)]
    if len(acts) != 1 or list(acts[0].parameters()):
        return False
    act, x = copy.deepcopy(acts[0]).eval(), torch.linspace(-2, 2, 8)
    try:
        y = act(x.clone())
        return torch.equal(act(x.flip(0)).flip(0), y) and torch.equal(act(x[:5].clone()), y[:5])
    except Exception:  # a module that is not an activation may raise anything
        return False


def _in_sequence(module: nn.Module) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The chains of an nn.Sequential."""
    names, layers = list(dict(module.named_children())), list(module.children())
    linear = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    taken = -1
    for begin, end in pairwise(linear):
        inner = layers[begin + 1 : end]
        if begin <= taken or not _fit(layers[begin], layers[end]) or not _acts(inner):
            continue
        stop = end + 1
        while stop < len(layers) and _is_dropout(layers[stop]):
            stop += 1
        if stop < len(layers) and isinstance(layers[stop], nn.Sigmoid | nn.Hardsigmoid):
            continue  # squeeze and excitation: it gates channels
        taken = end
        whole = begin == 0 and stop == len(layers)
        yield tuple(names[begin : stop if whole else end + 1]), whole


def _observed(module: nn.Module, first: str, second: str) -> tuple[tuple[str, ...], bool] | None:
    """The chain between two children, found by running a copy on a few numbers."""
    twin = copy.deepcopy(module).eval()
    calls: list[tuple[str, Any, Any]] = []
    hooks = []
    for name, child in twin.named_children():

        def note(_: nn.Module, given: Any, made: Any, name: str = name) -> None:
            calls.append((name, given[0] if given else None, made))

        hooks.append(child.register_forward_hook(note))
    weight = dict(twin.named_parameters(remove_duplicate=False))[f"{first}.weight"].detach()
    x = torch.linspace(-1, 1, 6 * weight.shape[1], device=weight.device, dtype=weight.dtype)
    x = x.view(2, 3, -1)
    y = _output(twin, x)
    for hook in hooks:
        hook.remove()
    names = [name for name, _, _ in calls]
    if y is None or names.count(first) != 1 or names.count(second) != 1:
        return None
    begin, end = names.index(first), names.index(second)

    def linked(place: int) -> bool:
        return calls[place][1] is calls[place - 1][2]

    inner = [twin.get_submodule(name) for name in names[begin + 1 : end]]
    if begin > end or not all(map(linked, range(begin + 1, end + 1))) or not _acts(inner):
        return None
    stop = end + 1
    while stop < len(calls) and linked(stop) and _is_dropout(twin.get_submodule(names[stop])):
        stop += 1
    if begin == 0 and stop == len(calls) and calls[0][1] is x and calls[-1][2] is y:
        return tuple(names), True
    inside = tuple(names[begin : end + 1])
    if any(names.count(name) > 1 for name in inside):
        return None  # a dropout that is used elsewhere as well
    return (inside, False) if _same_moved(twin, inside, x, y) else None


def _same_moved(twin: nn.Module, names: Sequence[str], x: Tensor, y: Tensor) -> bool:
    """Whether the module still returns `y` with the whole chain in its first layer's place. Then
    nothing else uses the tensors inside the chain."""
    setattr(twin, names[0], nn.Sequential(*(twin.get_submodule(name) for name in names)))
    for name in names[1:]:
        setattr(twin, name, nn.Identity())
    moved = _output(twin, x)
    return moved is not None and torch.equal(moved, y)


@torch.no_grad()
def _output(module: nn.Module, x: Tensor) -> Tensor | None:
    """The module's output; None if it does not take `x` or does not return a tensor."""
    try:
        y = module(x)
    except Exception:  # a forward pass may raise anything
        return None
    return y if isinstance(y, Tensor) else None


def _child(module: nn.Module, name: str) -> nn.Module:
    child = getattr(module, name)
    return child if isinstance(child, nn.Module) else FUNCTIONS[child]()


def _sequence(layers: Sequence[nn.Module]) -> nn.Module:
    """The layers in sequence, without those that do nothing."""
    acting = [m for m in layers if not (_is_dropout(m) and getattr(m, "p", 0) == 0)]
    if not acting:
        return nn.Identity()
    return acting[0] if len(acting) == 1 else nn.Sequential(*acting)
