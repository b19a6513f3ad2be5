"""The packed file of a quantized model: small, verified before decoding, without pickle.

    "raybench"  version  checksum  fingerprint  values' checksum  header  index  symbols  raw
        8          1        16          8              4          zstd     zstd

The checksum (BLAKE2b) covers everything after it. The header is JSON: `Stored`.
Names, shapes and dtypes are not stored: they follow from the Experiment, and the fingerprint is
their hash. The values' checksum (CRC-32) covers the decoded tensors, so that a library version that
decodes differently is detected. `codecs` describes the last three parts, which hold the tensors.
"""

from __future__ import annotations

import json
import zlib
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor, nn

from raybench.artefact import codecs
from raybench.artefact.checksum import DAMAGED
from raybench.artefact.codecs import byte_rows
from raybench.artefact.grid import Tensors
from raybench.artefact.stored import LARGEST_HEADER, OLDER, Stored, from_dict
from raybench.artefact.streams import In, Out, Reader, chunk, compress, decompress
from raybench.data import Inputs
from raybench.experiment import Experiment

MAGIC = b"raybench"
VERSION = 2
CHECKSUM, FINGERPRINT, CRC = 16, 8, 4  # bytes
START = len(MAGIC) + 1 + CHECKSUM
INDEX_ENTRY = 1024  # upper bound of a tensor's bytes in the index, with the model of its kind


class Packed(NamedTuple):
    """A file with a correct checksum and a decoded header; its tensors are not decoded."""

    stored: Stored
    fingerprint: bytes
    crc: int
    streams: memoryview


def encode(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> bytes:
    """The file's content. Equal models give equal bytes."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    about = Stored(experiment, classes, seen, inputs).to_dict()
    header = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    out = Out()
    codecs.write(tensors, out)
    behind = fingerprint(tensors) + _crc(tensors).to_bytes(CRC, "little")
    behind += chunk(compress(header)) + out.content()
    return seal(behind)


def seal(behind: bytes) -> bytes:
    """The complete file: magic, version, checksum of `behind`, and `behind`."""
    return MAGIC + bytes([VERSION]) + blake2b(behind, digest_size=CHECKSUM).digest() + behind


def opened(content: bytes) -> Packed:
    """Checks the whole file, then reads its header.

    Raises:
        ValueError: it is truncated, altered, of another version, or not a packed file.
    """
    if not content.startswith(MAGIC):
        raise ValueError("it does not begin like a packed model")
    if len(content) < START:
        raise ValueError("it is truncated")
    if content[len(MAGIC)] != VERSION:
        raise ValueError(
            f"its version is {content[len(MAGIC)]}, and this code reads {VERSION}: {OLDER}"
        )
    behind = memoryview(content)[START:]
    if blake2b(behind, digest_size=CHECKSUM).digest() != content[len(MAGIC) + 1 : START]:
        raise ValueError(f"its checksum is wrong: it is {DAMAGED}")
    reader = Reader(behind)
    stored_fingerprint = bytes(reader.take(FINGERPRINT))
    crc = int.from_bytes(reader.take(CRC), "little")
    try:
        about = json.loads(decompress(reader.chunk(), at_most=LARGEST_HEADER))
    except RecursionError as error:
        raise ValueError(f"its header is not an Experiment: {error}") from error
    return Packed(from_dict(about), stored_fingerprint, crc, reader.rest())


def decode(packed: Packed, like: Tensors) -> dict[str, Tensor]:
    """The stored tensors, for a model with the state_dict `like`, whose values are ignored.

    Raises:
        ValueError: the file contains another model, or its streams are damaged.
    """
    if packed.fingerprint != fingerprint(like):
        raise ValueError("its tensors have other names, shapes or types")
    source = In(packed.streams, largest_index=INDEX_ENTRY * (1 + len(like)))
    tensors = codecs.read(like, source)
    source.end()
    if _crc(tensors) != packed.crc:
        raise ValueError("its decoded tensors do not match their stored checksum")
    return tensors


def fingerprint(tensors: Tensors) -> bytes:
    """A hash of names, dtypes and shapes, which the file does not store."""
    descriptions = [
        f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()
    ]
    return blake2b("\n".join(descriptions).encode(), digest_size=FINGERPRINT).digest()


def _crc(tensors: Tensors) -> int:
    crc = 0
    for tensor in tensors.values():
        crc = zlib.crc32(byte_rows(tensor).data, crc)
    return crc
