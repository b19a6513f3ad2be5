"""Which linear layers of a transformer or mixer a technique replaces."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Literal

from torch import nn

from raybench.results.column import Column

Layers = Literal["both", "attention", "feed_forward", "all"]

PATTERNS: dict[str, tuple[str, ...]] = {
    "attention": ("*.attn.qkv", "*.attn.proj"),
    "feed_forward": ("*.mlp.fc[12]", "*.mlp_channels.fc[12]"),
}
PATTERNS["both"] = (*PATTERNS["attention"], *PATTERNS["feed_forward"])
PATTERNS["all"] = ("blocks.*",)  # a mixer's mixing of tokens as well

STRUCTURED_LAYERS = Column(int, "", "Linear layers that are Monarch or low-rank now.")
"""Of the column `structured_layers`, which both techniques report."""


def chosen(model: nn.Module, layers: Layers, leave_out: str) -> dict[str, nn.Linear]:
    """The model's linear layers of that kind, by name, without those that `leave_out` matches.

    `leave_out` holds shell patterns, separated by commas: `blocks.0.*,*.attn.proj`.

    Raises:
        ValueError: nothing is left to replace, or a pattern matches no layer.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wanted = [n for n in linear if any(fnmatch(n, pattern) for pattern in PATTERNS[layers])]
    without = [pattern.strip() for pattern in leave_out.split(",") if pattern.strip()]
    for pattern in without:
        if not any(fnmatch(name, pattern) for name in wanted):
            some = ", ".join(wanted[:3])
            raise ValueError(f"leave_out {pattern!r} matches no layer; there are {some}, …")
    left = [n for n in wanted if not any(fnmatch(n, pattern) for pattern in without)]
    if not left:
        raise ValueError(
            f"layers {layers!r} without {leave_out!r} leaves nothing of a {type(model).__name__} "
            "to replace"
        )
    return {name: linear[name] for name in left}


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the one of that name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
