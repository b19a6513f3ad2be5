"""Shared parameters, which a model uses in more than one place."""

from __future__ import annotations

from collections import Counter

from torch import nn


def shared(model: nn.Module) -> set[int]:
    """The `id`s of parameters with several names: tied weights, reused modules."""
    names = model.named_parameters(remove_duplicate=False)
    counts = Counter(id(parameter) for _, parameter in names)
    return {number for number, count in counts.items() if count > 1}
