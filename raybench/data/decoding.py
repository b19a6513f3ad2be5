"""Decodes a data set into arrays on disk: in parallel, in order, with little memory.

    images one by one ─ blocks of 4 MB ─ one thread per core decodes ─ in order ─▶ file

Pillow releases the GIL while it decodes. No array is in memory as a whole, because it may be larger
than the memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raybench.data import pixels
from raybench.data.contents import Contents, Encoded

BLOCK = 1 << 22  # bytes that a thread decodes at once
SPARE = 64 << 20  # bytes of disk to leave free
FIRST = 16  # images to time in order to choose the number of threads
WORTH_A_THREAD_S = 0.5e-3
LINE_S = 10.0  # between progress lines without a terminal


class Block(NamedTuple):
    """Some images (n, size, size, 3) and statistics of each; sums are over pixels, (n, 3)."""

    images: NDArray[np.uint8]
    digests: NDArray[np.uint64]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    sides: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Told:
    """Statistics of a split's decoded images, in order: (N,), sums (N, 3)."""

    digests: NDArray[np.uint64]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    sides: NDArray[np.int64]


class Advance(Protocol):
    def __call__(self, images: int, /) -> None: ...


def decode(contents: Contents, size: int, folder: Path) -> tuple[dict[str, Told], str]:
    """Writes the images of each split as `<split>.npy` (N, size + 2 pad, size + 2 pad, 3) of uint8.

    The padding is zero and an eighth of the size wide. Returns the statistics of each split's
    images, and the SHA-256 of all images and labels.

    Raises:
        ValueError: an image is damaged.
    """
    pad = size // 8
    digest = hashlib.sha256()
    facts: dict[str, Told] = {}
    total = sum(len(listed.labels) for listed in contents.splits.values())
    with pixels.without_warnings(), progress(total) as advance:
        for split, listed in contents.splits.items():
            parts: list[tuple[NDArray[Any], ...]] = []
            shape = (len(listed.labels), size + 2 * pad, size + 2 * pad, 3)
            with open(folder / f"{split}.npy", "wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in decoded_blocks(listed.images(), size):
                    digest.update(block.images.data)
                    file.write(padded(block.images, pad).data)
                    parts.append(block[1:])
                    advance(len(block.digests))
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            facts[split] = Told(
                digests=columns[0], sums=columns[1], squares=columns[2], sides=columns[3]
            )
            assert len(facts[split].digests) == len(listed.labels)
            digest.update(listed.labels.tobytes())
    return facts, digest.hexdigest()


def padded(images: NDArray[np.uint8], pad: int) -> NDArray[np.uint8]:
    """Pads with zeros, as in the ResNet paper, so that a shifted crop is a slice."""
    return np.ascontiguousarray(np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))))


def decoded_blocks(
    images: Iterator[Encoded], size: int, *, threads: int | None = None
) -> Iterator[Block]:
    """The images in order, decoded by as many threads as this process has cores.

    Uses one thread if an image takes less than `WORTH_A_THREAD_S`, because two threads would
    wait for each other (CIFAR-10: 4,200 images/s instead of 6,900).
    """
    first = list(islice(images, FIRST))
    began = time.perf_counter()
    yield _decoded(first, size)
    if threads is None:
        slow = time.perf_counter() - began > WORTH_A_THREAD_S * len(first)
        threads = len(os.sched_getaffinity(0)) if slow else 1
    count = max(1, min(1024, BLOCK // (3 * size * size)))
    blocks = iter(lambda: list(islice(images, count)), [])
    waiting: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(_decoded, block, size))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decoded(block: list[Encoded], size: int) -> Block:
    images = np.empty((len(block), size, size, 3), np.uint8)
    digests = np.empty(len(block), np.uint64)
    sums, squares = (np.empty((len(block), 3), np.int64) for _ in range(2))
    sides = np.empty(len(block), np.int64)
    for number, image in enumerate(block):
        images[number], digests[number], sides[number] = pixels.decoded(image, size)
        sums[number], squares[number] = pixels.sums(images[number])
    return Block(images, digests, sums, squares, sides)


def statistics(facts: Told, rows: NDArray[np.int64], size: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the rows' pixels, per channel, in units of 0 to 255.

    Computed from integers, so that they do not depend on the order. The deviation is at least 1,
    because pixels are divided by it.
    """
    count = len(rows) * size * size
    mean, std = [], []
    for channel in range(3):
        total = int(facts.sums[rows, channel].sum())
        squares = int(facts.squares[rows, channel].sum())
        mean.append(total / count)
        std.append(max(1.0, ((squares * count - total * total) / count**2) ** 0.5))
    return mean, std


def require_space(name: str, contents: Contents, size: int, folder: Path) -> int:
    """The bytes of the decoded images. Raises ValueError if the disk has less space."""
    side = size + 2 * (size // 8)
    needed = 3 * side * side * sum(len(listed.labels) for listed in contents.splits.values())
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise ValueError(
            f"--data {name}: its images at {size} pixels take {needed / 1e9:,.1f} GB, and {folder} "
            f"has {free / 1e9:,.1f} GB free; set RAYBENCH_CACHE to a larger disk, or use a "
            "smaller --image-size"
        )
    return needed


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """A bar on a terminal, else a line every 10 s, on standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("decoding images", total=total)
            yield lambda images: bar.update(task, advance=images)
        return
    began = last = time.monotonic()
    done = 0

    def advance(images: int) -> None:
        nonlocal done, last
        done += images
        now = time.monotonic()
        if now - last >= LINE_S:
            last = now
            print(
                f"raybench: decoded {done:,} of {total:,} images ({done / (now - began):,.0f} a "
                "second)",
                file=sys.stderr,
                flush=True,
            )

    yield advance
