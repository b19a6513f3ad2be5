"""Task: what a sweep gives out to whoever runs its trials."""

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
    """State to go on from where the file exists, and to save to."""
    model: Path
    """Where the trained model is to be stored."""
    asked: float
    """When the sweep gave it out, in seconds since the epoch."""
