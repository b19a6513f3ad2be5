"""The checksum of a served ONNX graph: other libraries do not mind it, and damage is seen first."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from shipped_files import INPUTS, stored_models

from raybench import predict
from raybench.artefact import graph_checksum, onnx_graph, served_graph
from trainers.pruning import base


@pytest.fixture(scope="module")
def graph() -> bytes:
    """A network of one layer, as it is served."""
    size = INPUTS.image_size
    nodes = [
        helper.make_node("GlobalAveragePool", [onnx_graph.INPUT], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [onnx_graph.OUTPUT]),
    ]
    takes = helper.make_tensor_value_info(
        onnx_graph.INPUT, TensorProto.FLOAT, ("batch", 3, size, size)
    )
    gives = helper.make_tensor_value_info(onnx_graph.OUTPUT, TensorProto.FLOAT, ("batch", 3))
    network = helper.make_model(
        helper.make_graph(nodes, "one", [takes], [gives]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return served_graph.served(network.SerializeToString(), INPUTS, base)


def test_onnx_and_onnx_runtime_read_a_sealed_graph(graph):
    entries = {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}
    assert entries["checksum"].encode() == graph[-32:]
    inputs, session = served_graph.opened(graph)
    assert inputs == INPUTS
    pixels = served_graph.random_images(inputs, 2)
    expected = inputs.normalized(pixels).mean((2, 3))
    assert onnx_graph.logits(session, pixels).allclose(expected, atol=1e-4)


def test_nothing_is_decoded_before_the_checksum_is_compared(graph, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(onnx_graph, "session", refuse)
    for place in (0, len(graph) // 2, len(graph) - 1):
        damaged = bytearray(graph)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="its checksum is wrong"):
            served_graph.opened(bytes(damaged))
    for content in (graph[:-1], graph[:40], b"", graph[: -len(graph_checksum.BEFORE) - 32]):
        with pytest.raises(ValueError, match=r"does not end with a checksum.*raybench\.export"):
            served_graph.metadata(content)


def test_a_model_is_not_served_as_a_graph(tmp_path):
    wrong = stored_models(tmp_path)["packed"].rename(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"net\.onnx is no ONNX graph"):
        predict.opened(wrong)
