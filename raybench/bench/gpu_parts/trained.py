"""A whole training run as rows: accuracy and costs after every epoch."""

from __future__ import annotations

from collections.abc import Iterator

from raybench.bench.gpu_parts.rows import Row
from raybench.experiment import Experiment
from raybench.training.trainer import train

FIGURES = (
    "accuracy",
    "test_accuracy",
    "train_s",
    "wall_s",
    "compile_s",
    "images_per_s",
    "s_per_epoch",
    "s_per_batch",
    "inference_s",
    "energy_j",
    "parameters",
    "flops",
    "model_bytes",
    "peak_memory_bytes",
)


def curve(part: str, subject: str, side: str, experiment: Experiment) -> Iterator[Row]:
    """One run, with the trainer of the commands; `startup_s` is that of this process."""
    for epoch in train(experiment):
        for figure in (*FIGURES, *(("startup_s",) if epoch.number == 1 else ())):
            value = epoch.metrics.get(figure)
            if value is not None:
                yield Row(part, subject, side, figure, float(value), epoch.number, experiment.seed)
