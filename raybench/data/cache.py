"""The decoded copy of a data set: arrays on disk, made once per machine and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from raybench.data import sources
from raybench.data.hold_out import split_rows
from raybench.data.split import Split

LAYOUT = 2  # version of what lies in a folder


@dataclass(frozen=True)
class Decoded:
    """A data set in its three splits, and what is the same for every experiment on it."""

    splits: dict[str, Split]
    classes: int
    mirror: bool
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_folder() -> Path:
    chosen = os.environ.get("RAYBENCH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "raybench"


@lru_cache(maxsize=4)
def decoded(name: str, size: int, root: str) -> Decoded:
    """The data set of this name, at this size. `root` is a part of the memory's key alone.

    Raises:
        ValueError: no such data, no images, too few, a broken image, or a label out of range.
    """
    cache = cache_folder()
    source = sources.find(name, cache)
    identity = json.dumps([LAYOUT, size, source.fingerprint])
    folder = cache / f"{Path(name).name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # many trials may start at once, one of them decodes
        if not (folder / "about.json").exists():
            _decode(name, source, size, folder)
    about = json.loads((folder / "about.json").read_text())
    arrays = {
        array: (
            # "c" maps the file copy-on-write: shared pages, and torch may treat it as its own.
            torch.from_numpy(np.load(folder / f"{array}.npy", mmap_mode="c")),
            torch.from_numpy(np.load(folder / f"{array}-labels.npy")),
            np.load(folder / f"{array}-digests.npy"),
        )
        for array in about["arrays"]
    }
    splits = {}
    for split in ("train", "validation", "test"):
        rows = torch.from_numpy(np.load(folder / f"{split}-rows.npy"))
        splits[split] = Split(*arrays.get(split, arrays["train"]), rows, size)
    return Decoded(
        splits=splits,
        classes=about["classes"],
        mirror=source.mirror,
        sha256=about["sha256"],
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
    )


def _decode(name: str, source: sources.Source, size: int, folder: Path) -> None:
    print(f"raybench: decoding images into {folder} (once)", file=sys.stderr, flush=True)
    arrays, classes = source.read(size)
    train = arrays["train"]
    rows = {array: np.arange(len(images.labels)) for array, images in arrays.items()}
    try:
        rows |= split_rows(set(arrays), train.digests, train.labels)
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from error
    mean, std = statistics(train.images, rows["train"])
    pad = size // 8
    digest = hashlib.sha256()
    staging = Path(tempfile.mkdtemp(dir=folder.parent))
    for array, images in arrays.items():
        digest.update(images.images.tobytes())
        digest.update(images.labels.tobytes())
        # Zero padding, as in the ResNet paper: the crop then is a plain window.
        padded = np.pad(images.images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        np.save(staging / f"{array}.npy", padded)
        np.save(staging / f"{array}-labels.npy", images.labels)
        np.save(staging / f"{array}-digests.npy", images.digests)
    for split, chosen in rows.items():
        np.save(staging / f"{split}-rows.npy", chosen)
    about = {
        "arrays": list(arrays),
        "classes": classes,
        "sha256": digest.hexdigest(),
        "mean": mean,
        "std": std,
    }
    (staging / "about.json").write_text(json.dumps(about))
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def statistics(images: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the rows' pixels, per channel, in units of 0 to 255.

    Counted value by value, some images at a time: a copy in float64 would be eight times as large.
    The deviation is 1 at the least, as pixels are divided by it.
    """
    at_once = max(1, 2**22 // images[0, ..., 0].size)
    counts = np.zeros((3, 256), dtype=np.int64)
    for first in range(0, len(rows), at_once):
        pixels = images[rows[first : first + at_once]].reshape(-1, 3)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    values, total = np.arange(256.0), counts.sum(1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    return mean.tolist(), np.maximum(1.0, np.sqrt(variance)).tolist()
