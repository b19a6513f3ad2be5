"""Task: one trial of a sweep, for a worker to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raybench.experiment import Experiment


@dataclass(frozen=True)
class Task:
    """A trial to be run: the experiment, and where its files are."""

    number: int
    trial: str
    experiment: Experiment
    checkpoint: Path
    """The state to resume from, if the file exists, and to save to."""
    model: Path
    """Where the trained model is to be stored."""
    asked: float
    """When the sweep returned it from `ask`, in seconds since 1970."""
