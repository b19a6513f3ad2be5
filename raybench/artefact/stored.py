"""What a trained model's file tells of it, in either format."""

from __future__ import annotations

from typing import NamedTuple

from raybench.experiment import Experiment


class Stored(NamedTuple):
    """The header of a trained model's file."""

    experiment: Experiment
    classes: int
    seen: str
    """What it was trained on, as `raybench.data.seen` writes it; empty where that is not known."""
