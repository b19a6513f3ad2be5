"""The state from which a run resumes, with any strategy and any number of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raybench.experiment import Experiment, Parallel, flatten, from_json
from raybench.training.state_file import MARK, is_whole, previous, put_in_place, seal
from raybench.training.state_file import usable as usable


def write(state: dict[str, Any], path: Path) -> None:
    """Writes a state atomically; the state before it is kept as the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
    seal(partial)
    put_in_place(partial, path)


def remark(path: Path) -> str:
    """One line about a damaged state, which is moved aside; empty if there is none.

    Raises:
        ValueError: another kind of file is there, which must not be moved.
    """
    if not path.exists() or is_whole(path):
        return ""
    is_ours = previous(path).exists() or path.read_bytes()[-len(MARK) - 4 :].startswith(MARK)
    if path.stat().st_size and not is_ours:
        raise ValueError(f"{path} is not a checkpoint: name another file, or delete it")
    before = usable(path)
    goes_on = "goes on from the state before it" if before else "starts from the beginning"
    return f"{path} is damaged: it was moved to {path}.damaged, and the run {goes_on}"


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in an undamaged file."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def read(path: Path, experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """The stored state; the same experiment may have written it with other `parallel` settings.

    Raises:
        ValueError: it belongs to another experiment; the message names the first different field.
    """
    state = load(path, device)
    other = from_json(state["experiment"])
    if _alike(other) == _alike(experiment):
        return state
    theirs, ours = flatten(_alike(other)), flatten(_alike(experiment))
    name = next(name for name in ours if theirs[name] != ours[name])
    raise ValueError(
        f"{path} was saved by another experiment, with {name} {theirs[name]!r} instead of "
        f"{ours[name]!r}; start without it"
    )


def _alike(experiment: Experiment) -> Experiment:
    """The experiment without its `parallel` settings, which change results only by rounding."""
    return replace(experiment, parallel=Parallel())
