"""The served graph: its input is decoded images, and its metadata describes it.

    images (B, S, S, 3) uint8 ─ Cast ─ Mul ─ Add ─ Transpose ─▶ the network's graph ─▶ logits

Normalization is part of the graph, so that servers need not implement it. The metadata holds
`class_names` (a JSON list), `mean` and `std` (JSON lists, in units of 0 to 255), `image_size`,
`channels`, `experiment` (JSON) and a checksum of the file (`graph_checksum`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from raybench.artefact import graph_checksum, onnx_graph
from raybench.data import Inputs, Split, pixel_batches
from raybench.data.inputs import from_dict, scale_and_shift
from raybench.experiment import Experiment

NORMALIZED = "normalized_images"
DESCRIBED = ("class_names", "mean", "std", "image_size", "channels", "experiment")


def served(graph: bytes, inputs: Inputs, experiment: Experiment) -> bytes:
    """The graph of a network with normalization before it, and with metadata.

    Args:
        graph: a graph of `onnx_graph`, for normalized images (B, 3, size, size).
    """
    model = onnx.load_from_string(graph)
    network = model.graph
    for node in network.node:
        for place, name in enumerate(node.input):
            if name == onnx_graph.INPUT:
                node.input[place] = NORMALIZED
    batch, size = network.input[0].type.tensor_type.shape.dim[0].dim_param, inputs.image_size
    pixels = onnx.helper.make_tensor_value_info(
        onnx_graph.INPUT, onnx.TensorProto.UINT8, (batch or "batch", size, size, 3)
    )
    del network.input[:]
    network.input.append(pixels)
    constants = zip(("scale", "shift"), scale_and_shift(inputs.mean, inputs.std), strict=True)
    for name, values in constants:
        tensor = onnx.numpy_helper.from_array(values.numpy().astype(np.float32), f"pixel_{name}")
        network.initializer.append(tensor)
    make = onnx.helper.make_node
    front = [
        make("Cast", [onnx_graph.INPUT], ["pixels"], to=onnx.TensorProto.FLOAT),
        make("Mul", ["pixels", "pixel_scale"], ["pixels_scaled"]),
        make("Add", ["pixels_scaled", "pixel_shift"], ["pixels_shifted"]),
        make("Transpose", ["pixels_shifted"], [NORMALIZED], perm=[0, 3, 1, 2]),
    ]
    nodes = [*front, *network.node]
    del network.node[:]
    network.node.extend(nodes)
    for key, value in {**inputs.to_dict(), "experiment": json.loads(experiment.to_json())}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(model)
    return graph_checksum.sealed(bytes(model.SerializeToString()))


def opened(graph: bytes) -> tuple[Inputs, onnxruntime.InferenceSession]:
    """The inputs of a served graph, and a session that runs it.

    Raises:
        ValueError: the checksum is wrong or missing; it is verified before decoding.
    """
    graph_checksum.require(graph)
    session = onnx_graph.session(graph)
    described = _described(session)
    described.pop("experiment")
    return from_dict(described), session


def metadata(graph: bytes) -> dict[str, Any]:
    """The metadata of a served graph. Raises the errors of `opened`."""
    graph_checksum.require(graph)
    return _described(onnx_graph.session(graph))


def _described(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    entries = session.get_modelmeta().custom_metadata_map
    texts = {name: entries[name] for name in DESCRIBED}
    return {n: text if n == "channels" else json.loads(text) for n, text in texts.items()}


def accuracy(graph: bytes, split: Split) -> float:
    """The accuracy of a served graph on a split."""
    session = onnx_graph.session(graph)
    correct = 0
    for pixels_BHWC, labels in pixel_batches(split, batch=onnx_graph.CALIBRATION_BATCH):
        logits = onnx_graph.logits(session, pixels_BHWC)
        correct += int((logits.argmax(1) == labels).sum())
    return correct / len(split)


def random_images(inputs: Inputs, count: int) -> torch.Tensor:
    """(count, size, size, 3) of uint8, for timing a served graph."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, inputs.image_size, inputs.image_size, 3)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
