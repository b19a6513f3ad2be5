"""The super model: the pruning family, with the latency of what is shipped.

Reference: a student project put augmentation, pruning, mixed precision, quantization and
synchronous training together and reports a file 1.8 times smaller; it gives no latency.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raybench import artefact, data
from raybench.artefact import latency, onnx_graph
from raybench.experiment import Experiment
from trainers import pruning
from trainers.pruning import table as table  # of the report

base = replace(
    pruning.base, family="super_model", recipe=replace(pruning.base.recipe, renew_norms=32)
)

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}

RUNS = 200


def shipped_latency_ms(path: Path, experiment: Experiment) -> float:
    """Milliseconds that ONNX Runtime takes for one image on one thread: the median of 200 runs.

    In int8 where the model is quantized, else in fp32. The thread's own time, because trials of a
    sweep run side by side.
    """
    model = artefact.load(path)
    graph = onnx_graph.fp32_graph(model, experiment.image_size)
    if experiment.quantize is not None and experiment.quantize.bits:
        batches = onnx_graph.calibration_batches(data.load(experiment))
        graph = onnx_graph.int8_graph(model, graph, batches)
    found = latency.measure(
        {"shipped": onnx_graph.Bound(graph)},
        image_size=experiment.image_size,
        batch=1,
        runs=RUNS,
    )
    return found["shipped"].summary()["thread_ms"]
