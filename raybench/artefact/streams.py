"""The three streams of a packed file: an index of small numbers, symbols, and raw bytes."""

from __future__ import annotations

import numpy as np
import zstandard

from raybench.artefact.entropy import RangeDecoder, RangeEncoder

BEST = 19  # zstd's level for up to SMALL bytes
FAST = 1  # level for more: 330 MB of a ViT-B take one second, and floats hardly compress
SMALL = 1 << 20


class Reader:
    """Reads bytes from the front. Raises ValueError if too few are left."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._rest = memoryview(content)

    def take(self, count: int) -> memoryview:
        if count > len(self._rest):
            raise ValueError(f"{count} bytes are needed, but only {len(self._rest)} are left")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def number(self) -> int:
        """LEB128: seven bits per byte, lowest first."""
        value = shift = 0
        while shift < 63:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number has more than 63 bits")

    def chunk(self) -> memoryview:
        """The content written by this module's `chunk`."""
        return self.take(self.number())

    def rest(self) -> memoryview:
        return self.take(len(self._rest))

    def end(self) -> None:
        if self._rest:
            raise ValueError(f"{len(self._rest)} bytes are left over")


class Out:
    """The streams that tensors are written to."""

    def __init__(self) -> None:
        self.index, self.raw = bytearray(), bytearray()
        self.symbols = RangeEncoder()

    def content(self) -> bytes:
        symbols = self.symbols.get_compressed().astype("<u4").tobytes()
        return chunk(compress(bytes(self.index))) + chunk(symbols) + bytes(self.raw)


class In:
    """The streams that tensors are read from.

    Args:
        largest_index: bounds the memory that a damaged file can ask for.

    Raises:
        ValueError: a stream is missing or damaged.
    """

    def __init__(self, content: memoryview, largest_index: int) -> None:
        reader = Reader(content)
        self.index = Reader(decompress(reader.chunk(), at_most=largest_index))
        symbols = reader.chunk()
        if len(symbols) % 4:
            raise ValueError("the symbols are not a whole number of 32-bit words")
        self.symbols = RangeDecoder(np.frombuffer(symbols, "<u4").astype(np.uint32))
        self.raw = reader

    def end(self) -> None:
        self.index.end()
        self.raw.end()


def number(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def chunk(content: bytes) -> bytes:
    """The content, preceded by its length."""
    return number(len(content)) + content


def compress(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(BEST if len(content) <= SMALL else FAST).compress(content)


def decompress(content: memoryview, *, at_most: int) -> bytes:
    """The inverse of `compress`. Raises ValueError for other input or over `at_most` bytes."""
    try:
        # python-zstandard allocates the size in the frame before it checks any limit.
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= at_most:
            raise ValueError(f"a chunk claims {size} bytes, but at most {at_most} can be there")
        return zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
