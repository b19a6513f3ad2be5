"""Sources of images: looked up by name and downloaded at most once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybench.data import image_folder, parquet_files
from raybench.data.contents import Contents, Encoded, Listed
from raybench.data.split_names import some
from raybench.data.visible_files import IMAGES, images_of, visible, without_images
from raybench.experiment import nearest

CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
BEANS = "https://storage.googleapis.com/ibeans/{}.zip"


@dataclass(frozen=True)
class Source:
    """A data set: a function that lists its images, and a fingerprint for the cache key."""

    fingerprint: list[str]
    contents: Callable[[], Contents]
    mirror: bool = True
    """Whether a mirrored image has the same class."""


def find(name: str, cache: Path) -> Source:
    """The source for `--data name`.

    `digits` comes with scikit-learn. Other names are looked up in `$RAYBENCH_DATA` first, then
    downloaded into `cache`; anything else is a folder.

    Raises:
        ValueError: there is no such data set or folder, or it contains no images.
    """
    if name == "digits":
        return Source(["scikit-learn digits"], _digits, mirror=False)
    if not name:
        raise ValueError("--data is empty: name a data set or a folder")
    root = os.environ.get("RAYBENCH_DATA")
    is_typed_path = name.split(os.sep)[0] in (".", "..")
    if root and not is_typed_path and (Path(root) / name).is_dir():
        source = _folder(Path(root) / name)
        if name == "cifar10":
            return replace(source, contents=lambda: _named(source.contents(), CIFAR10_NAMES))
        return source
    if name in ("cifar10", "cifar100"):
        return Source([f"torchvision {name}"], lambda: _cifar(name, cache))
    if name == "beans":
        return _folder(_download_beans(cache))
    if Path(name).is_dir():
        return _folder(Path(name))
    if Path(name).exists():
        raise ValueError(f"--data {name} is a file: name its folder")
    beside = Path(name).parent
    folders = [one for one in beside.iterdir() if one.is_dir()] if beside.is_dir() else []
    advice = nearest(name, ["digits", "cifar10", "cifar100", "beans"])
    if not advice.startswith("did"):
        typed = nearest(name, [str(beside / folder.name) for folder in folders])
        advice = typed if typed.startswith("did") else advice
    raise ValueError(f"--data {name}: no such folder and no known data set; {advice}")


def _digits() -> Contents:
    """1,797 handwritten digits, 8x8 with 17 grey levels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    return Contents(
        class_names=tuple(str(digit) for digit in range(10)),
        splits={"train": _arrays("digits", grey, digits.target)},
    )


def _cifar(name: str, cache: Path) -> Contents:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    splits, names = {}, ()
    for split in ("train", "test"):
        try:
            images = kind(str(cache / "downloads"), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"--data {name}: the download failed ({error}). Put the data set in Hugging Face "
                f"Parquet layout into a folder {name} and set RAYBENCH_DATA to the folder above it"
            ) from error
        splits[split] = _arrays(f"{split} of {name}", images.data, images.targets)
        names = tuple(images.classes)
    return Contents(class_names=names, splits=splits)


def _named(contents: Contents, names: tuple[str, ...]) -> Contents:
    """The contents with these class names, if the classes have only numbers."""
    numbers = tuple(str(number) for number in range(len(names)))
    return replace(contents, class_names=names) if contents.class_names == numbers else contents


def _arrays(where: str, pixels: NDArray[np.uint8], labels: object) -> Listed:
    def images() -> Iterator[Encoded]:
        for row, image in enumerate(pixels):
            yield Encoded(f"image {row} of {where}", image)

    return Listed(labels=np.asarray(labels, np.int64), images=images)


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
    """Hugging Face Parquet layout, or an image folder with one folder per class."""
    files, folders = visible(folder)
    parquet = [file for file in files if file.suffix.lower() == ".parquet"]
    remarks: tuple[str, ...] = ()
    if parquet:
        chosen, read = parquet, parquet_files.contents
        images = [file for file in files if file.suffix.lower() in IMAGES]
        if images:
            remarks = (f"{len(images)} image files beside the Parquet files are left out",)
    else:
        chosen, remarks = images_of(folder, files)
        empty = [str(path.relative_to(folder)) for path in without_images(folders, chosen)]
        if empty and chosen:
            remarks += (f"folders without images are left out: {some(empty)}",)
        read = image_folder.contents
    if not chosen:
        raise ValueError(
            f"--data {folder}: no images there. Expected Parquet files with the columns "
            f"{'/'.join(parquet_files.IMAGE_COLUMNS)} and "
            f"{'/'.join(parquet_files.LABEL_COLUMNS)}, or one folder per class"
        )
    stats = [(file, file.stat()) for file in chosen]
    fingerprint = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
    return Source(fingerprint, lambda: read(folder, chosen, remarks))
