"""Which linear layers of a model a technique replaces.

    kind            layers
    attention       those of attention modules, by class or path: queries, keys, values, projection
    feed_forward    those of feed-forwards, as `feed_forwards` finds them, and the linear layers of
                    modules with a feed-forward's name: gated ones, and those without biases
    both            these two
    all             every linear layer except the classifier, also a mixer's token layers

Left dense: layers whose forward pass is not nn.Linear's, layers that share their weight with
others, and layers for which the factors do not fit or would not be smaller. The input projection
of nn.MultiheadAttention is not a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Literal

from torch import nn

from raybench.results.column import Column
from raybench.techniques.layers.chain import is_plain, narrows
from raybench.techniques.layers.classifier import classifier
from raybench.techniques.layers.feed_forwards import (
    LIKE,
    NOT_LIKE,
    feed_forwards,
    mixes_tokens,
    without_fast_path,
)
from raybench.techniques.layers.shared import shared

Layers = Literal["both", "attention", "feed_forward", "all"]

ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
PROJECTION = re.compile(r"(to_|in_)?(q|k|v|qkv|kv|qk|query|key|value)(_proj|_lin)?|out_proj|o_proj")
"""Names of attention's linear layers in a block without an attention module."""
PAIRS = ({"fc1", "fc2"}, {"linear1", "linear2"}, {"lin1", "lin2"}, {"w1", "w2"}, {"w12", "w3"})
"""Names of linear layers of a feed-forward that calls its activation as a function."""
FEED_FORWARD = re.compile(r"(mlp|ffn|ff|feed_?forward)(_\w+)?", re.IGNORECASE)
"""Names of an nn.Sequential that is a feed-forward, for example a gated one."""

STRUCTURED_LAYERS = Column(int, "", "Linear layers that are Monarch or low-rank now.")
"""The column `structured_layers`, which both techniques report."""


def chosen(
    model: nn.Module,
    layers: Layers,
    leave_out: str,
    saved: Callable[[nn.Linear], int] | None = None,
) -> dict[str, nn.Linear]:
    """The model's linear layers of that kind, by name, without those that `leave_out` matches.

    `leave_out` holds shell patterns, separated by commas: `blocks.0.*,*.attn.proj`. `saved` returns
    the number of parameters that a layer's replacement saves, or raises ValueError if it has none.
    Layers that do not fit are left out as long as one layer fits.

    Raises:
        ValueError: nothing is left to replace, or a pattern matches no layer.
    """
    linear = _replaceable(model)
    kinds = _kinds(model, linear)
    parts = {"both": ("attention", "feed_forward"), "all": ("attention", "feed_forward", "rest")}
    wanted = [n for n in linear if kinds[n] in parts.get(layers, (layers,))]
    without = [pattern.strip() for pattern in leave_out.split(",") if pattern.strip()]
    for pattern in without:
        if not any(fnmatch(name, pattern) for name in wanted):
            some = ", ".join(wanted[:3]) or "none"
            raise ValueError(f"leave_out {pattern!r} matches no layer; there are {some}, …")
    left = [n for n in wanted if not any(fnmatch(n, pattern) for pattern in without)]
    if not left:
        wide = "" if layers == "all" or without or not linear else "; layers 'all' includes others"
        less = f" without {leave_out!r}" if without else ""
        raise ValueError(
            f"{type(model).__name__} has no linear layer to replace (layers {layers!r}{less}){wide}"
        )
    return {name: linear[name] for name in (_fitting(linear, left, saved) if saved else left)}


def _fitting(
    linear: dict[str, nn.Linear], names: list[str], saved: Callable[[nn.Linear], int]
) -> list[str]:
    """The layers with a smaller replacement. Raises the first ValueError if there are none."""
    fitting, errors = [], []
    for name in names:
        try:
            if saved(linear[name]) >= 0:
                fitting.append(name)
            else:
                errors.append(ValueError(f"the factors would be larger than {name}"))
        except ValueError as error:
            errors.append(ValueError(str(error).replace(" layer;", f" {name};")))
    if not fitting:
        raise errors[0]
    return fitting


def _replaceable(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that can be replaced, by name."""
    tied, heads = shared(model), classifier(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and is_plain(module)
        and name not in heads
        and name
        and id(module.weight) not in tied
    }


def _kinds(model: nn.Module, linear: dict[str, nn.Linear]) -> dict[str, str]:
    """Kind of each linear layer: attention, feed_forward or rest."""
    in_chains = {
        id(layer): "rest" if f.of_tokens else "feed_forward"
        for f in feed_forwards(model)
        if f.chain is not None
        for layer in (f.chain.first, f.chain.second)
    }
    return {n: in_chains.get(id(layer)) or _by_name(model, n) for n, layer in linear.items()}


def _by_name(model: nn.Module, name: str) -> str:
    """The kind of a layer, by the classes and names above it."""
    path, _, leaf = name.rpartition(".")
    holder, alone = model.get_submodule(path), True
    while path and type(holder) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        if FEED_FORWARD.fullmatch(path.rpartition(".")[2]):
            return "rest" if mixes_tokens(path) else "feed_forward"
        # A single layer is an output projection with its dropout; several are another network.
        alone = alone and sum(isinstance(m, nn.Linear) for m in holder.modules()) == 1
        path, _, leaf = path.rpartition(".")
        holder = model.get_submodule(path)
    kind = type(holder).__name__
    siblings = {n for n, m in holder.named_children() if isinstance(m, nn.Linear)}
    if path and (NOT_LIKE.search(kind) or narrows(holder)):
        return "rest"
    if path and (LIKE.search(kind) or any(leaf in pair <= siblings for pair in PAIRS)):
        return "rest" if mixes_tokens(path) else "feed_forward"
    in_attention = ATTENTION.search(kind) or ATTENTION.search(path.rpartition(".")[2])
    return "attention" if alone and (in_attention or PROJECTION.fullmatch(leaf)) else "rest"


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the module of that name."""
    parent, _, last = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, last, module)
    without_fast_path(holder)
