"""A family whose states have 350 MB, like those of ResNet-50 in fp32 with Adam's moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raybench.bench.cluster_parts import waiting
from raybench.cluster.trial import CHECKPOINT_EVERY_S
from raybench.experiment import Experiment
from raybench.training.loop import Epoch

MB = 350


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """Epochs long enough for the state of each one to be saved."""
    long = CHECKPOINT_EVERY_S + 0.5
    return waiting.train(experiment, resume=resume, store=store, values=MB * 250_000, epoch_s=long)
