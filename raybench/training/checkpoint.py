"""The state from which a run goes on: with any strategy, and with any number of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raybench.experiment import Experiment, Parallel, flatten, from_json


def write(state: dict[str, Any], path: Path) -> None:
    """Writes a state, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def read(path: Path, experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """The state that was written, by the same experiment spread in any way.

    Raises:
        ValueError: it is of another experiment; the first field that differs is named.
    """
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    other = from_json(state["experiment"])
    if _alike(other) == _alike(experiment):
        return state
    theirs, ours = flatten(_alike(other)), flatten(_alike(experiment))
    name = next(name for name in ours if theirs[name] != ours[name])
    raise ValueError(
        f"{path} was saved by another experiment, with {name} {theirs[name]!r} for "
        f"{ours[name]!r}; start without it"
    )


def _alike(experiment: Experiment) -> Experiment:
    """Without how it is spread, which no result depends on but for rounding."""
    return replace(experiment, parallel=Parallel())
