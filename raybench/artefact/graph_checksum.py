"""The checksum of an ONNX graph: the last metadata entry of its file.

Fields of a protobuf message may have any order, so the entry can be appended to the graph, and
every ONNX library can still read the file:

    graph  72 LEN  0a 08 "checksum"  12 20 <32 digits>
"""

from __future__ import annotations

from raybench.artefact import checksum

KEY = b"checksum"
ENTRY = b"\x0a" + bytes([len(KEY)]) + KEY + b"\x12" + bytes([checksum.DIGITS])
# 72 is ModelProto's field 14, `metadata_props`.
BEFORE = b"\x72" + bytes([len(ENTRY) + checksum.DIGITS]) + ENTRY


def sealed(graph: bytes) -> bytes:
    """The graph with its checksum."""
    content = graph + BEFORE + checksum.UNSET
    return checksum.sealed(content, len(content) - checksum.DIGITS)


def require(graph: bytes) -> None:
    """Raises ValueError if the graph has no checksum or does not match it; decodes nothing."""
    place = len(graph) - checksum.DIGITS
    if place < 0 or not graph.endswith(BEFORE, 0, place):
        raise ValueError(
            "it does not end with a checksum: it is truncated, or another program or an older "
            "raybench wrote it; write it with `python -m raybench.export FILE --onnx OUT`"
        )
    checksum.require(graph, place)
