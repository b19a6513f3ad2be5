"""Where images come from: each source is found, downloaded at most once, and read as arrays."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from raybench.experiment import nearest

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SPLITS = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
BEANS = "https://storage.googleapis.com/ibeans/{}.zip"


@dataclass(frozen=True)
class Labelled:
    """One split: images (N, size, size, 3) of uint8, labels (N,) of int64, and digests (N,) of
    uint64 of what the source holds, the same at every size."""

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class Source:
    """A found data set: how to read it, and what it consists of (for the cache's key)."""

    fingerprint: list[str]
    read: Callable[[int], tuple[dict[str, Labelled], int]]
    """image_size -> the splits that the source has, and its number of classes."""
    mirror: bool = True
    """Whether a mirrored image is an image of the same class."""


def find(name: str, cache: Path) -> Source:
    """The source that `--data name` means.

    `digits` is embedded in scikit-learn. A name is looked for in `$RAYBENCH_DATA` before it is
    downloaded into `cache`; anything else is a folder.

    Raises:
        ValueError: there is no such data set or folder, or it holds no images.
    """
    if name == "digits":
        return Source(["scikit-learn digits"], _read_digits, mirror=False)
    root = os.environ.get("RAYBENCH_DATA")
    if root and (Path(root) / name).is_dir():
        return _folder(Path(root) / name)
    if name in ("cifar10", "cifar100"):
        return Source([f"torchvision {name}"], lambda size: _read_cifar(name, size, cache))
    if name == "beans":
        return _folder(_download_beans(cache))
    if Path(name).is_dir():
        return _folder(Path(name))
    advice = nearest(name, ["digits", "cifar10", "cifar100", "beans"])
    raise ValueError(f"--data {name}: no such folder and no known data set; {advice}")


def _read_digits(size: int) -> tuple[dict[str, Labelled], int]:
    """1,797 handwritten digits, 8x8 with 17 grey levels, enlarged and shown in three channels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    images = [np.asarray(Image.fromarray(g).resize((size, size))) for g in grey]
    pixels = np.repeat(np.stack(images)[..., None], 3, axis=-1)
    digests = _digests(g.tobytes() for g in grey)
    return {"train": Labelled(pixels, digits.target.astype(np.int64), digests)}, 10


def _read_cifar(name: str, size: int, cache: Path) -> tuple[dict[str, Labelled], int]:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    splits = {}
    for split in ("train", "test"):
        try:
            images = kind(str(cache / "downloads"), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"--data {name}: the download failed ({error}). Put the data set in Hugging Face "
                f"Parquet layout into a folder {name} and set RAYBENCH_DATA to the folder above it"
            ) from error
        pixels = np.stack([_resized(Image.fromarray(image), size) for image in images.data])
        digests = _digests(image.tobytes() for image in images.data)
        splits[split] = Labelled(pixels, np.asarray(images.targets, dtype=np.int64), digests)
    return splits, len(images.classes)


def _download_beans(cache: Path) -> Path:
    from torchvision.datasets.utils import download_and_extract_archive

    folder = cache / "downloads" / "beans"
    for split in ("train", "validation", "test"):
        if (folder / split).is_dir():
            continue
        try:
            download_and_extract_archive(BEANS.format(split), str(folder))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"--data beans: the download failed ({error}). Put its images into a folder beans "
                "and set RAYBENCH_DATA to the folder above it"
            ) from error
    return folder


def _folder(folder: Path) -> Source:
    """Hugging Face Parquet layout, or an image folder with a folder a class."""
    parquet = sorted(folder.rglob("*.parquet"))
    files = parquet or sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise ValueError(
            f"--data {folder}: no images there. Expected Parquet files with the columns "
            f"{'/'.join(IMAGE_COLUMNS)} and {'/'.join(LABEL_COLUMNS)}, or a folder a class"
        )
    stats = [(file, file.stat()) for file in files]
    fingerprint = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
    if parquet:
        return Source(fingerprint, lambda size: _read_parquet(folder, files, size))
    return Source(fingerprint, lambda size: _read_image_folder(folder, files, size))


def _read_parquet(folder: Path, files: list[Path], size: int) -> tuple[dict[str, Labelled], int]:
    import pyarrow.parquet as pq

    named_splits = {file: _split_of_parquet(file.relative_to(folder)) for file in files}
    if any(named_splits.values()):
        _all_splits(folder, {str(f.relative_to(folder)): s for f, s in named_splits.items()})
    images: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[int]] = {}
    digests: dict[str, list[int]] = {}
    named = 0  # classes that the file's own metadata names
    for file in files:
        split = named_splits[file] or "train"
        table = pq.read_table(file)
        image_column = _column(file, table.column_names, IMAGE_COLUMNS)
        label_column = _column(file, table.column_names, LABEL_COLUMNS)
        named = max(named, _named_classes(table.schema.metadata or {}, label_column))
        rows = table.column(image_column).to_pylist()
        for row, cell in enumerate(rows):
            data = cell["bytes"] if isinstance(cell, dict) else cell
            if data is None:
                raise ValueError(f"--data: row {row} of {file} holds no image bytes")
            images.setdefault(split, []).append(
                _opened(BytesIO(data), f"row {row} of {file}", size)
            )
            digests.setdefault(split, []).append(_digest(data))
        labels.setdefault(split, []).extend(table.column(label_column).to_pylist())
    return _labelled(images, labels, digests, named, str(files[0].parent))


def _split_of_parquet(path: Path) -> str | None:
    """`test-00000-of-00001.parquet`, `cifar_test.parquet`, `default/test/0000.parquet` -> test."""
    for part in reversed(path.with_suffix("").parts):
        for word in re.split("[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _all_splits(folder: Path, splits: dict[str, str | None]) -> None:
    """Raises ValueError where a name beside others that are splits is none."""
    unknown = sorted(name for name, split in splits.items() if split is None)
    if not unknown:
        return
    known = sorted(name for name, split in splits.items() if split is not None)
    beside = f"beside {_some(known)}" if known else "with folders of images in them"
    spellings = "; ".join(", ".join(names) for names in SPELLINGS.values())
    raise ValueError(
        f"--data {folder}: {_some(unknown)} {beside}: which split is that? Rename to one of "
        f"{spellings}; or leave one folder a class, without splits"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _column(file: Path, present: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in present:
            return name
    raise ValueError(f"--data: {file} has the columns {present}, none of {list(wanted)}")


def _named_classes(metadata: dict[bytes, bytes], column: str) -> int:
    """Number of class names that the Hugging Face metadata gives, 0 where it gives none."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return len(features.get(column, {}).get("names", []))


def _read_image_folder(
    folder: Path, files: list[Path], size: int
) -> tuple[dict[str, Labelled], int]:
    """`split/class/image` or `class/image`; classes are numbered by sorted name.

    Raises:
        ValueError: a folder of folders that is no split.
    """
    classes = sorted({file.parent.name for file in files})
    places = [file.relative_to(folder).parts for file in files]
    splits = {parts[0]: SPLITS.get(parts[0].lower()) for parts in places}
    nested = any(len(parts) > 2 for parts in places)
    if nested or any(splits.values()):
        _all_splits(folder, splits)
    images: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[int]] = {}
    digests: dict[str, list[int]] = {}
    for file, parts in zip(files, places, strict=True):
        split, content = splits[parts[0]] or "train", file.read_bytes()
        images.setdefault(split, []).append(_opened(BytesIO(content), str(file), size))
        labels.setdefault(split, []).append(classes.index(file.parent.name))
        digests.setdefault(split, []).append(_digest(content))
    return _labelled(images, labels, digests, len(classes), str(folder))


def _labelled(
    images: dict[str, list[np.ndarray]],
    labels: dict[str, list[int]],
    digests: dict[str, list[int]],
    named: int,
    where: str,
) -> tuple[dict[str, Labelled], int]:
    if "train" not in images:
        raise ValueError(f"--data {where}: it has {', '.join(images)} images but none to train on")
    whole = [label for label in labels["train"] if isinstance(label, int)]
    classes = named or 1 + max(whole, default=-1)
    for split, values in labels.items():
        for row, label in enumerate(values):
            if not isinstance(label, int) or not 0 <= label < classes:
                raise ValueError(
                    f"--data {where}: label {label} of {split} image {row} is out of range; "
                    f"there are {classes} classes, numbered from 0"
                )
    splits = {
        split: Labelled(
            np.stack(images[split]),
            np.asarray(labels[split], dtype=np.int64),
            np.asarray(digests[split], dtype=np.uint64),
        )
        for split in images
    }
    return splits, classes


def _digests(contents: Iterable[bytes]) -> np.ndarray:
    return np.fromiter((_digest(content) for content in contents), dtype=np.uint64)


def _digest(content: bytes) -> int:
    """64 bits of what an image is, not of where it lies."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _opened(file: BytesIO, where: str, size: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return _resized(image, size)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(
            f"--data: {where} is no readable image ({error}). Replace or remove it"
        ) from error


def _resized(image: Image.Image, size: int) -> np.ndarray:
    """RGB, scaled so that the shorter side fits, cut at the centre to size x size."""
    image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)
