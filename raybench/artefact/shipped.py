"""What a stored model costs where it is served: latency and accuracy of one and the same graph."""

from __future__ import annotations

from pathlib import Path

from raybench.artefact import latency, load, onnx_graph
from raybench.data import Images
from raybench.experiment import Experiment

RUNS = 200


def shipped_latency(path: Path, experiment: Experiment, images: Images) -> dict[str, float]:
    """Columns of the stored model's graph in ONNX Runtime, on one thread.

    `latency_ms` is the median of 200 runs with one image, by the thread's own clock, because trials
    of a sweep run side by side; `latency_test_accuracy` that graph's share of correctly classified
    test images. The graph is int8 where weights and inputs of the model are quantized: its ranges
    that the model has not learned come from training images, so its accuracy may differ from the
    model's. Otherwise it is fp32, with the model's own weights.

    Raises:
        ValueError: the model has no ONNX graph, or ONNX Runtime lacks the operators.
    """
    model = load(path, experiment.model)
    graph = onnx_graph.fp32_graph(model, experiment.image_size)
    quantize = experiment.quantize
    if quantize is not None and quantize.active and quantize.activation_bits <= 8:
        graph = onnx_graph.int8_graph(model, graph, onnx_graph.calibration_batches(images))
    times = latency.measure(
        {"shipped": onnx_graph.Bound(graph)}, image_size=experiment.image_size, batch=1, runs=RUNS
    )
    return {
        "latency_ms": times["shipped"].summary()["thread_ms"],
        "latency_test_accuracy": onnx_graph.accuracy(
            onnx_graph.session(graph), images, images.test
        ),
    }
