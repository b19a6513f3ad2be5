"""The cost of serving a stored model: latency and accuracy of one graph."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from raybench.artefact import latency, load, onnx_graph, served_graph
from raybench.data import Images
from raybench.experiment import Experiment

RUNS = 200


class Graphs(NamedTuple):
    """The served graph, and the network's fp32 graph if that is different."""

    shipped: bytes
    fp32: bytes | None = None


def graphs(path: Path, experiment: Experiment, images: Images) -> Graphs:
    """The served graph of a stored model.

    It is int8 if the model's weights and inputs are quantized. Ranges that the model has not
    learned come from training images, so the accuracy may differ from the model's. Otherwise the
    graph is fp32, with the model's own weights.

    Raises:
        ValueError: the model has no ONNX graph, or ONNX Runtime lacks the operators.
    """
    model = load(path, experiment.model)
    fp32 = onnx_graph.fp32_graph(model, experiment.image_size)
    quantize = experiment.quantize
    if quantize is None or not quantize.active or quantize.activation_bits > 8:
        return Graphs(served_graph.served(fp32, images.inputs, experiment))
    int8 = onnx_graph.int8_graph(model, fp32, onnx_graph.calibration_batches(images))
    return Graphs(
        served_graph.served(int8, images.inputs, experiment),
        served_graph.served(fp32, images.inputs, experiment),
    )


def shipped_latency(path: Path, experiment: Experiment, images: Images) -> dict[str, float]:
    """Columns of the stored model's served graph in ONNX Runtime, on one thread.

    `latency_ms` is the median of 200 runs with one image, in thread time, because trials of a sweep
    run concurrently; `latency_test_accuracy` is that graph's test accuracy.

    Raises:
        ValueError: the model has no ONNX graph, or ONNX Runtime lacks the operators.
    """
    graph = graphs(path, experiment, images).shipped
    one_image = served_graph.random_images(images.inputs, 1)
    times = latency.measure({"shipped": onnx_graph.Bound(graph)}, one_image, runs=RUNS)
    return {
        "latency_ms": times["shipped"].summary()["thread_ms"],
        "latency_test_accuracy": served_graph.accuracy(graph, images.test),
    }
