"""How one tensor is stored: the smallest of five codecs, all lossless to the bit.

    constant  one value: folded batch norms, counters, bits
    grid      integer codes by the range coder, if a weight lies on its layer's grid
    half      fp32 values that fp16 represents exactly. The upper bytes of all such vectors of a
              kind share one model of the range coder; the lower bytes are noise and stay raw
    sparse    a mask of the non-zero values by the range coder, and these values by zstd
    planes    zstd over all first bytes, all second bytes, …: exponents compress, mantissas do not

zstd is worse on a grid: at level 19 it takes 3 % more than the range coder for 8 bits at 60 %
sparsity, 20 % for 4 bits at 80 %, and 31 % for 4 bits at 90 % (ResNet-20).
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybench.artefact import entropy, grid
from raybench.artefact.grid import Tensors
from raybench.artefact.streams import In, Out, chunk, compress, decompress

CODECS = ("constant", "half", "grid", "sparse", "planes")  # a codec's number in the file
ANY = np.arange(256)  # bytes, one bucket each
MASK = np.arange(2)
INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}  # by size in bytes
GLANCE = 1024  # first values; checking them rules out most tensors that are not constant or fp16


def choose(name: str, tensors: Tensors) -> tuple[str, float]:
    """The codec of this tensor, and the approximate number of bytes."""
    tensor = tensors[name]
    if _is_constant(tensor):
        return "constant", tensor.element_size()
    sizes: dict[str, float] = {"planes": tensor.numel() * tensor.element_size()}
    if _is_half(tensor):
        sizes["half"] = 2 * tensor.numel()
    present = _present(tensor)
    stored = int(present.sum())
    if stored < len(present):
        mask = entropy.estimated_bytes(present.astype(np.intp), MASK)
        sizes["sparse"] = mask + stored * tensor.element_size()
    codes = grid.codes(name, tensors)
    if codes is not None:
        largest = grid.largest_code(name, tensors)
        sizes["grid"] = entropy.estimated_bytes(codes, entropy.buckets(largest))
    codec = min(sizes, key=lambda codec: sizes[codec])
    return codec, sizes[codec]


def write(tensors: Tensors, out: Out) -> None:
    """Writes the codecs' numbers, then the tensors, codec by codec; grids last, after their steps.

    The order matters: `read` needs the steps and bits before the grids.
    """
    codecs = {name: choose(name, tensors)[0] for name in tensors}
    out.index += bytes(CODECS.index(codec) for codec in codecs.values())
    for name in _of("constant", codecs):
        out.index += byte_rows(tensors[name])[0].tobytes()
    for kind in kinds(_of("half", codecs)):
        # Little-endian: the second byte holds sign, exponent and two bits of the mantissa.
        rows = np.concatenate([byte_rows(tensors[name].half()) for name in kind])
        model = entropy.model(rows[:, 1], ANY)
        out.index += model
        entropy.append(out.symbols, rows[:, 1], model, ANY)
        out.raw += rows[:, 0].tobytes()
    for name in _of("sparse", codecs):
        _write_sparse(tensors[name], out)
    for name in _of("planes", codecs):
        _write_planes(byte_rows(tensors[name]), out)
    for name in _of("grid", codecs):
        _write_grid(name, tensors, out)


def read(like: Tensors, source: In) -> dict[str, Tensor]:
    """New tensors with the names, shapes and dtypes of `like`.

    Raises:
        ValueError: the streams do not match.
    """
    numbers = source.index.take(len(like))
    if any(number >= len(CODECS) for number in numbers):
        raise ValueError(f"there is no codec {max(numbers)}")
    codecs = {name: CODECS[number] for name, number in zip(like, numbers, strict=True)}
    tensors: dict[str, Tensor] = {}
    for name in _of("constant", codecs):
        value = np.frombuffer(source.index.take(like[name].element_size()), np.uint8)
        tensors[name] = _typed(value.copy(), like[name].dtype)[0].expand(like[name].shape).clone()
    for kind in kinds(_of("half", codecs)):
        sizes = [like[name].numel() for name in kind]
        model = bytes(source.index.take(len(ANY)))
        rows = np.empty((sum(sizes), 2), np.uint8)
        rows[:, 1] = entropy.take(source.symbols, len(rows), model, ANY)
        rows[:, 0] = np.frombuffer(source.raw.take(len(rows)), np.uint8)
        values = torch.from_numpy(rows).view(torch.float16).flatten().float().split(sizes)
        for name, piece in zip(kind, values, strict=True):
            tensors[name] = piece.reshape(like[name].shape)
    for name in _of("sparse", codecs):
        tensors[name] = _read_sparse(like[name], source)
    for name in _of("planes", codecs):
        rows = _read_planes(like[name].numel(), like[name].element_size(), source)
        tensors[name] = _typed(rows, like[name].dtype).reshape(like[name].shape)
    for name in _of("grid", codecs):  # last: they need their steps and bits
        tensors[name] = _read_grid(name, like, tensors, source)
    return {name: tensors[name] for name in like}


def half_bytes(kind: list[Tensor]) -> float:
    """The approximate number of bytes of all fp16 vectors of one kind."""
    upper = np.concatenate([byte_rows(tensor.half())[:, 1] for tensor in kind])
    present = np.unique(upper)  # zstd shrinks the model to little more than the costs of these
    return entropy.estimated_bytes(upper, ANY) - len(ANY) + len(present) + len(upper)


def kinds(names: list[str]) -> list[list[str]]:
    """Names grouped by their last part: steps have one magnitude, batch-norm biases another."""
    ordered = sorted(names, key=_last_part)  # stable: the order within a kind stays
    return [list(group) for _, group in groupby(ordered, key=_last_part)]


def _write_grid(name: str, tensors: Tensors, out: Out) -> None:
    codes = grid.codes(name, tensors)
    assert codes is not None
    buckets = entropy.buckets(grid.largest_code(name, tensors))
    model = entropy.model(codes, buckets)
    out.index += model
    entropy.append(out.symbols, codes, model, buckets)


def _read_grid(name: str, like: Tensors, decoded: Tensors, source: In) -> Tensor:
    tensors = {**like, **decoded}
    largest = 0
    if {name + grid.STEP, name + grid.BITS} <= set(decoded):  # both are decoded before grids
        largest = grid.largest_code(name, tensors)
    if not largest:
        raise ValueError(f"{name} is not on a grid")
    buckets = entropy.buckets(largest)
    model = bytes(source.index.take(int(buckets.max()) + 1))
    codes = entropy.take(source.symbols, like[name].numel(), model, buckets)
    return grid.weights(codes, name, tensors, like[name].shape)


def _write_sparse(tensor: Tensor, out: Out) -> None:
    present = _present(tensor)
    model = entropy.model(present.astype(np.intp), MASK)
    out.index += model
    entropy.append(out.symbols, present.astype(np.intp), model, MASK)
    _write_planes(byte_rows(tensor)[present], out)


def _read_sparse(like: Tensor, source: In) -> Tensor:
    model = bytes(source.index.take(len(MASK)))
    present = entropy.take(source.symbols, like.numel(), model, MASK).astype(bool)
    rows = np.zeros((like.numel(), like.element_size()), np.uint8)
    rows[present] = _read_planes(int(present.sum()), like.element_size(), source)
    return _typed(rows, like.dtype).reshape(like.shape)


def _write_planes(rows: NDArray[np.uint8], out: Out) -> None:
    out.raw += chunk(compress(np.ascontiguousarray(rows.T).tobytes()))


def _read_planes(count: int, width: int, source: In) -> NDArray[np.uint8]:
    content = decompress(source.raw.chunk(), at_most=count * width)
    if len(content) != count * width:
        raise ValueError(f"there are {len(content)} bytes for {count} values of {width}")
    return np.frombuffer(content, np.uint8).reshape(width, count).T.copy()


def _of(wanted: str, codecs: dict[str, str]) -> list[str]:
    return [name for name, codec in codecs.items() if codec == wanted]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def byte_rows(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor: (values, bytes per value)."""
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # a tensor of one value may have any stride
        flat = flat.new_empty(len(flat)).copy_(flat)
    return flat.view(torch.uint8).numpy().reshape(-1, tensor.element_size())


def _typed(rows: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """The values of these bytes, in one dimension."""
    if dtype == torch.bool and bool((rows > 1).any()):
        raise ValueError("a bool is neither 0 nor 1")
    return torch.from_numpy(rows.ravel()).view(dtype)


def _present(tensor: Tensor) -> NDArray[np.bool_]:
    """Which values have any bit set; -0.0 has one, so it is not left out."""
    # As integers of the same width: 14 times faster on a large weight than byte by byte.
    return (byte_rows(tensor).view(INTEGERS[tensor.element_size()]) != 0).reshape(-1)


def _is_constant(tensor: Tensor) -> bool:
    rows = byte_rows(tensor)
    if not len(rows):
        return False
    return all(bool((part == rows[0]).all()) for part in (rows[:GLANCE], rows))


def _is_half(tensor: Tensor) -> bool:
    if tensor.dtype != torch.float32:
        return False
    flat = tensor.contiguous().reshape(-1)
    return all(
        torch.equal(part.half().float().view(torch.int32), part.view(torch.int32))
        for part in (flat[:GLANCE], flat)
    )
