"""Decoding photographs into the cache: peak memory, and the speed-up with several cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import numpy as np
from PIL import Image

from raybench.data import decoding, sources

IMAGES, SIZE = 2000, 224
ROUNDS = 7
TIMED = IMAGES  # fewer would show the first and last blocks, which one thread decodes

# Not `ru_maxrss`, which includes the memory of the parent process.
PROGRAM = """
import sys
from pathlib import Path
from raybench.data import cache
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
began = peak()
cache.decoded(sys.argv[1], int(sys.argv[2]), "")
print(peak() - began)
"""


def write(folder: Path, count: int = IMAGES) -> None:
    """Writes JPEGs of 400 x 300 pixels, smooth like photographs, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (19, 25, 3), dtype=np.uint8))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)


def measure() -> dict[str, float]:
    """`decode_peak_ratio`: peak memory above the start over the decoded images' bytes;
    `decode_speedup`: time of one thread over that of one thread per core, median of rounds.

    `decode_speedup_bound` is what the machine allows: the images per second of a process on each
    core, which share nothing, over those of one process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        write(folder)
        peak = peak_bytes(folder, Path(scratch) / "cache")
        cores, ratios, bounds = len(os.sched_getaffinity(0)), [], []
        with get_context("spawn").Pool(cores) as pool:
            every = [(folder, 1)] * cores
            pool.starmap(_seconds, every, chunksize=1)  # until all have started
            for _ in range(ROUNDS):
                alone = _seconds(folder, 1)
                ratios.append(alone / _seconds(folder, None))
                bounds.append(cores * alone / mean(pool.starmap(_seconds, every, chunksize=1)))
        one = _seconds(folder, None)
    return {
        "decode_peak_ratio": peak / (IMAGES * SIZE * SIZE * 3),
        "decode_speedup": median(ratios),
        "decode_speedup_bound": median(bounds),
        "decode_images_per_s": TIMED / one,
    }


def peak_bytes(folder: Path, cache: Path) -> float:
    """Growth to peak memory in a process that decodes the folder into the cache."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(SIZE)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "RAYBENCH_CACHE": str(cache)},
    )
    return float(done.stdout)


def _seconds(folder: Path, threads: int | None) -> float:
    listed = sources.find(str(folder), folder).contents().splits["train"]
    images = islice(listed.images(), TIMED)
    began = time.perf_counter()
    for _ in decoding.decoded_blocks(images, SIZE, threads=threads):
        pass
    return time.perf_counter() - began
