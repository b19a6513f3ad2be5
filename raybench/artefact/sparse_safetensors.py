"""A trained model as safetensors, with pruned weights left out.

A weight with many zeros is stored as a mask of one bit per value, and its non-zero values. At 60 %
sparsity that is 2.3 times smaller than the dense file, at 90 % 7.6 times; zstandard on the dense
file reaches 2.2 and 6.2. The header begins with the version and a checksum of the whole file, which
is verified before anything is decoded; the rest is JSON (`Stored`):

    {"__metadata__":{"raybench":"2 <checksum> {…}"}, "conv1.weight": …}
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from raybench.artefact import checksum
from raybench.artefact.stored import LARGEST_HEADER, OLDER, Stored, from_dict
from raybench.artefact.streams import compress, decompress
from raybench.data import Inputs
from raybench.experiment import Experiment

BITS, VALUES = ".bits", ".values"
BEGIN = b'{"__metadata__":{"raybench":"'  # after 8 bytes with the header's length
VERSION = b"2"
CHECKSUM = 8 + len(BEGIN) + len(VERSION) + 1  # its offset in the file
BLOCK = 1 << 20  # bytes read at a time
LONG_NAMES = 1000  # characters from which class names are compressed
SAFETENSORS = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = list(SAFETENSORS.values())  # as safetensors sorts them: widest first
SIZE = {name: dtype.itemsize for dtype, name in SAFETENSORS.items()}


class OtherModel(ValueError):
    """The file's architecture differs from that of the model to fill."""


def encode(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> bytes:
    """The file's content for this model."""
    tensors: dict[str, Tensor] = {}
    sparse: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        dense = tensor.detach().cpu().contiguous()
        packed = _pack(dense)
        if packed is None:
            tensors[name] = dense
        else:
            tensors[name + BITS], tensors[name + VALUES] = packed
            sparse[name] = list(dense.shape)
    metadata = _metadata(Stored(experiment, classes, seen, inputs), sparse)
    content = serialize(tensors, metadata=metadata)
    assert content[8:].startswith(BEGIN + VERSION + b" "), "safetensors changed its header format"
    return checksum.sealed(content, CHECKSUM)


def encoded_bytes(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> int:
    """`len(encode(...))` without the content: counting zeros needs no copy of the model."""
    stored: list[tuple[str, str, list[int]]] = []
    sparse: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        present = _present(tensor)
        if present is None:
            stored.append((name, SAFETENSORS[tensor.dtype], list(tensor.shape)))
        else:
            stored.append((name + BITS, "U8", [-(-tensor.numel() // 8)]))
            stored.append((name + VALUES, SAFETENSORS[tensor.dtype], [present]))
            sparse[name] = list(tensor.shape)
    # The header in safetensors' format: types in descending order, then names; compact JSON.
    stored.sort(key=lambda entry: entry[0])
    stored.sort(key=lambda entry: ORDER.index(entry[1]))
    metadata = _metadata(Stored(experiment, classes, seen, inputs), sparse)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, kind, shape in stored:
        begin, end = end, end + math.prod(shape) * SIZE[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end


def _metadata(stored: Stored, sparse: dict[str, list[int]]) -> dict[str, str]:
    about = {**stored.to_dict(), "sparse": sparse}
    names = json.dumps(about["inputs"] and about["inputs"]["class_names"])
    if len(names) > LONG_NAMES:
        about["inputs"]["class_names"] = b64encode(compress(names.encode())).decode()
    text = json.dumps(about, sort_keys=True)
    # One entry, because safetensors writes several in random order; equal models give equal files.
    return {"raybench": f"{VERSION.decode()} {checksum.UNSET.decode()} {text}"}


def about(path: Path | str) -> Stored:
    """The file's header, after a check of its checksum.

    Raises the errors of `require`, `safe_open` and JSON.
    """
    require(path)
    with safe_open(path, framework="pt") as file:
        return from_dict(_header(file))


def require(path: Path | str) -> None:
    """Checks the whole file without decoding it.

    Raises:
        ValueError: it is truncated, altered, of another version, or not written by `encode`.
    """
    with open(path, "rb") as file:
        begin = file.read(CHECKSUM + checksum.DIGITS)
        if not begin[8:].startswith(BEGIN):
            raise ValueError("it does not begin like a model of raybench: --store writes one")
        header_bytes = int.from_bytes(begin[:8], "little")
        if header_bytes > LARGEST_HEADER:
            raise ValueError("its header is too large")
        if 8 + header_bytes > os.fstat(file.fileno()).st_size:
            raise ValueError(f"its header is longer than the file: it is {checksum.DAMAGED}")
        version = begin[8 + len(BEGIN) :].partition(b" ")[0]
        if version != VERSION:
            number = version.decode() if version.isdigit() else "1"  # which did not write it
            wanted = VERSION.decode()
            raise ValueError(f"its version is {number}, and this code reads {wanted}: {OLDER}")
        checksum.require(begin, CHECKSUM, iter(lambda: file.read(BLOCK), b""))


def _header(file: Any) -> dict[str, Any]:
    """The JSON in the metadata, with class names as a list."""
    header: dict[str, Any] = json.loads(file.metadata()["raybench"].split(" ", 2)[2])
    takes = header["inputs"]
    names = takes.get("class_names") if isinstance(takes, dict) else None
    if isinstance(names, str):
        content = memoryview(b64decode(names, validate=True))
        header["inputs"]["class_names"] = json.loads(decompress(content, at_most=LARGEST_HEADER))
    return header


def tensors(path: Path | str, like: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The stored weights of a model with the state_dict `like`, one after another.

    Raises:
        OtherModel: the first name in which the two differ.
        ValueError: as for `require`, or a tensor does not match its header.
    """
    require(path)
    with safe_open(path, framework="pt") as file:
        sparse = _header(file)["sparse"]
        names = {name.removesuffix(BITS).removesuffix(VALUES) for name in file.keys()}  # noqa: SIM118
        if names != set(like):
            raise OtherModel(min(names ^ set(like)))
        for name, tensor in like.items():
            if name not in sparse:
                stored = file.get_tensor(name)
            elif sparse[name] != list(tensor.shape):
                raise OtherModel(name)
            else:
                bits, values = (file.get_tensor(name + end) for end in (BITS, VALUES))
                stored = _unpack(name, bits, values, tensor.shape)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise OtherModel(name)
            yield name, stored


def _present(dense: Tensor) -> int | None:
    """Number of values of a weight to store; None if leaving out zeros saves nothing."""
    if dense.ndim < 2 or not dense.is_floating_point():
        return None
    present = int(torch.count_nonzero(dense))
    saved = (dense.numel() - present) * dense.element_size()
    return present if saved > dense.numel() / 8 else None


def _pack(dense: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bits and non-zero values; None if that is not smaller."""
    if _present(dense) is None:
        return None
    present = dense.flatten() != 0
    return torch.from_numpy(np.packbits(present.numpy())), dense.flatten()[present]


def _unpack(name: str, bits: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Raises ValueError if the numbers of bits or values do not fit the shape."""
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise ValueError(f"the mask of {name} does not fit its shape")
    present = np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool)
    if values.shape != (int(present.sum()),):
        raise ValueError(f"the values of {name} do not match its mask")
    dense = torch.zeros(shape, dtype=values.dtype)
    dense.view(-1)[torch.from_numpy(present)] = values
    return dense
