"""A family whose trials wait instead of computing, but save states and models of real size.

This allows comparing several nodes with one on a machine with few processors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from raybench.bench import steady
from raybench.experiment import Experiment
from raybench.training import checkpoint
from raybench.training.loop import Epoch

EPOCH_S = 0.4
VALUES = 550_000  # per state, as ResNet-20 with momentum: 2.2 MB


def train(
    experiment: Experiment,
    *,
    resume: Path | None = None,
    store: Path | None = None,
    values: int = VALUES,
    epoch_s: float = EPOCH_S,
) -> Iterator[Epoch]:
    """One epoch at a time; the accuracy depends only on the experiment and the epoch's number.

    Raises:
        RuntimeError: the state to resume from is not the one that was saved.
    """
    epochs, key, first = experiment.recipe.epochs, experiment.key(), 1
    if resume is not None:
        state = checkpoint.load(resume)
        first = int(state["epoch"]) + 1
        if not torch.equal(state["weights"], _weights(values, first - 1)):
            raise RuntimeError(f"the state of epoch {first - 1} is damaged")
        del state
    for number in range(first, epochs + 1):
        time.sleep(epoch_s)
        metrics = {"accuracy": steady.accuracy(key, number / epochs), "startup_s": 0.0}
        if number == epochs and store is not None:
            store.write_bytes(_weights(values // 2, number).numpy().tobytes())

        def save(path: Path, number: int = number) -> None:
            checkpoint.write({"epoch": number, "weights": _weights(values, number)}, path)

        yield Epoch(number, epochs, metrics, save)


def _weights(values: int, epoch: int) -> torch.Tensor:
    return torch.arange(values, dtype=torch.float32) + epoch
