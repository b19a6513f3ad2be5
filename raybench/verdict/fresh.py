"""python -m raybench.verdict.fresh FOLDER: reads the files of a recommended recipe again.

Prints one JSON object: test accuracy of the model's file and of the ONNX graph, bytes, latency.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from raybench import artefact, data, parallel
from raybench.artefact import latency, onnx_graph, served_graph
from raybench.experiment import Parallel, recipe_file
from raybench.training import process
from raybench.training.score import evaluate

RECIPE, GRAPH = "recipe.json", "recommended.onnx"
RUNS = 100


def model_of(folder: Path) -> Path:
    """The file of the recommended model."""
    return next(p for p in sorted(folder.glob("recommended.*")) if p.name != GRAPH)


def measured(folder: Path) -> dict[str, float]:
    """The figures of the files in a study's folder."""
    process.prepare(threads=1)
    experiment = recipe_file.read(folder / RECIPE)
    images = data.load(experiment)
    path = model_of(folder)
    model = artefact.load(path, experiment.model)
    accuracy, _ = evaluate(model, images, images.test, parallel.replicas(Parallel()))
    figures = {"test_accuracy": accuracy, "model_bytes": float(path.stat().st_size)}
    graph_path = folder / GRAPH
    if graph_path.exists():
        graph = graph_path.read_bytes()
        inputs = images.inputs
        assert served_graph.metadata(graph)["class_names"] == list(inputs.class_names)
        one_image = served_graph.random_images(inputs, 1)
        times = latency.measure({"graph": onnx_graph.Bound(graph)}, one_image, runs=RUNS)
        figures |= {
            "onnx_test_accuracy": served_graph.accuracy(graph, images.test),
            "onnx_bytes": float(len(graph)),
            "latency_ms": float(np.median(times["graph"].thread_ms)),
        }
    return figures


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]))))
