"""The contents of a data set, before any of its images is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raybench.data.split_names import some


class Encoded(NamedTuple):
    """An image that is not decoded yet."""

    where: str
    """Names the image in error messages."""
    content: bytes | Path | NDArray[np.uint8]
    """A file's content, the file's path, or pixels (H, W) or (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A split: its labels (N,) of int64, and an iterator over its images in the same order."""

    labels: NDArray[np.int64]
    images: Callable[[], Iterator[Encoded]]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The source's own splits, and the names of its classes."""

    class_names: tuple[str, ...]
    splits: dict[str, Listed]
    remarks: tuple[str, ...] = ()
    """Remarks on what was left out, one sentence each."""


def checked(where: object, contents: Contents) -> Contents:
    """The same contents, with a remark on classes without images.

    Raises:
        ValueError: there is nothing to train on, there are fewer than two classes, or a class of
            another split has no training images.
    """
    splits, names = contents.splits, contents.class_names
    if "train" not in splits:
        raise ValueError(f"--data {where}: it has {', '.join(splits)} images but none to train on")
    if len(names) < 2:
        raise ValueError(
            f"--data {where}: all images are of one class ({''.join(names)}); give the folder that "
            "has one subfolder per class, two or more"
        )
    trained = np.bincount(splits["train"].labels, minlength=len(names)) > 0
    for split, listed in splits.items():
        missing = np.unique(listed.labels[~trained[listed.labels]])
        if len(missing):
            raise ValueError(
                f"--data {where}: class {names[missing[0]]} has {split} images but none to train "
                "on; are its names spelled alike?"
            )
    if all(trained):
        return contents
    empty = [name for name, has_images in zip(names, trained, strict=True) if not has_images]
    remark = f"classes without images: {some(empty)}"
    return replace(contents, remarks=(*contents.remarks, remark))
