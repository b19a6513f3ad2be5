"""The decoded copy of a data set: arrays on disk, created once per machine and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from raybench.arguments.paths import cache_folder
from raybench.data import decoding, sources
from raybench.data.contents import Contents
from raybench.data.hold_out import split_rows
from raybench.data.split import Split
from raybench.data.split_names import some

LAYOUT = 3  # version of the files in a cache folder
USUAL_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)


@dataclass(frozen=True)
class Decoded:
    """A data set in three splits, and the values that are common to all experiments on it."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    mirror: bool
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@lru_cache(maxsize=4)
def decoded(name: str, size: int, root: str) -> Decoded:
    """The data set with this name at this size. `root` is only part of the cache key.

    Raises:
        ValueError: no such data, no images, too few, a broken image, or a label out of range.
    """
    cache = cache_folder()
    source = sources.find(name, cache)
    identity = json.dumps([LAYOUT, size, source.fingerprint])
    folder = cache / f"{Path(name).name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # many trials may start at once; one of them decodes
        if not (folder / "about.json").exists():
            _decode(name, source, size, folder)
    about = json.loads((folder / "about.json").read_text())
    arrays = {
        array: (
            # "c" maps the file copy-on-write: pages are shared, and torch accepts it as writable.
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
        class_names=tuple(about["class_names"]),
        mirror=source.mirror,
        sha256=about["sha256"],
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
    )


def _decode(name: str, source: sources.Source, size: int, folder: Path) -> None:
    contents = source.contents()
    for remark in contents.remarks:
        _print(f"{name}: {remark}")
    needed = decoding.require_space(name, contents, size, folder.parent)
    count = sum(len(listed.labels) for listed in contents.splits.values())
    _print(f"decoding {count:,} images into {folder} ({needed / 1e6:,.0f} MB, once)")
    # This process holds the lock, so no other process uses the leftovers of an earlier one.
    staging = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        _write(name, contents, size, staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(name: str, contents: Contents, size: int, folder: Path) -> None:
    """Writes the images, their labels, digests and splits, and a description of the data set."""
    facts, sha256 = decoding.decode(contents, size, folder)
    labels = {split: listed.labels for split, listed in contents.splits.items()}
    rows = {split: np.arange(len(values)) for split, values in labels.items()}
    try:
        rows |= split_rows(set(labels), facts["train"].digests, labels["train"])
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from error
    mean, std = decoding.statistics(facts["train"], rows["train"], size)
    for split, values in labels.items():
        np.save(folder / f"{split}-labels.npy", values)
        np.save(folder / f"{split}-digests.npy", facts[split].digests)
    for split, chosen in rows.items():
        np.save(folder / f"{split}-rows.npy", chosen)
    about = {
        "arrays": list(labels),
        "class_names": contents.class_names,
        "sha256": sha256,
        "mean": mean,
        "std": std,
    }
    (folder / "about.json").write_text(json.dumps(about))
    counts = {split: len(rows[split]) for split in ("train", "validation", "test")}
    _print(f"{name}: {understood(contents.class_names, counts, {*labels})}")
    advice = suggested_size(size, float(np.median(facts["train"].sides)))
    if advice:
        _print(f"{name}: {advice}")


def understood(names: tuple[str, ...], counts: dict[str, int], given: set[str]) -> str:
    """Classes, images per split, and the origin of the splits, as text."""
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    held_out = [split for split in counts if split not in given]
    origin = f" ({' and '.join(held_out)} held out by a hash of the content)" if held_out else ""
    return f"{len(names)} classes ({some(names)}); {images} images{origin}"


def suggested_size(size: int, side: float) -> str:
    """Advice if the images are at least twice as large as `size`, or at most half; else empty.

    `side` is the median of their shorter sides; below 16 pixels there is no advice.
    """
    if side < 16 or size / 2 < side < size * 2:
        return ""
    fitting = max([32, *(usual for usual in USUAL_SIZES if usual <= side)])
    if fitting == size:
        return ""
    return (
        f"the images' shorter side is {side:,.0f} pixels, and image_size is {size}; "
        f"--image-size {fitting} suits them"
    )


def _print(text: str) -> None:
    print(f"raybench: {text}", file=sys.stderr, flush=True)
