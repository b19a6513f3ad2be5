"""The super model: the pruning family, with the latency of what is shipped.

Reference: a student project put augmentation, pruning, mixed precision, quantization and
synchronous training together and reports a file 1.8 times smaller; it gives no latency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from raybench import data
from raybench.artefact.shipped import shipped_latency
from raybench.experiment import Experiment
from raybench.parallel.ddp import Replicas
from raybench.reports.tables.super_model import table as table  # of the report
from raybench.training.loop import Epoch
from trainers import pruning

base = replace(
    pruning.base,
    family="super_model",
    recipe=replace(pruning.base.recipe, renew_norms=32),
    latency=True,
)

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """One run of the pruning family; its last epoch tells the latency, too dear for every one.

    Raises:
        ValueError: the model has no ONNX graph, or ONNX Runtime lacks the operators.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = store or Path(folder) / "model.safetensors"
        for epoch in pruning.train(experiment, resume=resume, store=path):
            # Of several workers the first has the file.
            if epoch.last and experiment.latency and Replicas().rank == 0:
                told = shipped_latency(path, experiment, data.load(experiment))
                yield replace(epoch, metrics=epoch.metrics | told)
            else:
                yield epoch
