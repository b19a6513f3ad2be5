"""Which images are held out for validation and test; depends on the images, not on a seed.

The images of a class are sorted by the digests of their content, which is as good as a random
order. The first ones are the test images, the next ones the validation images. All runs on the
same files have the same splits, so that no model trains on the test images of another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

VALIDATION_SHARE = 0.1  # of the images that are not in the test split
TEST_SHARE = 0.2  # only for a source without its own test split


def split_rows(
    names: set[str], digests: np.ndarray, labels: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Rows of the training images (N,) for `train`, and for the splits that `names` lacks.

    Raises:
        ValueError: there are too few images to hold out any.
    """
    pool, rows = np.arange(len(labels)), {}
    shares = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
    missing = [name for name in shares if name not in names]
    for number, name in enumerate(missing):
        leave = len(missing) - number  # one image to train on, and one for each later split
        out = held_out(digests[pool], labels[pool], shares[name], leave=leave)
        rows[name], pool = pool[out], pool[~out]
        if not len(rows[name]):
            raise ValueError(
                f"no class has enough different images to hold some out for {name}: 3 per class "
                f"are enough, or give the {name} images in a folder or file of that name"
            )
    return {**rows, "train": pool}


def held_out(digests: np.ndarray, labels: np.ndarray, share: float, *, leave: int) -> np.ndarray:
    """Mask (N,) of the images to hold out: a share of each class, in the order of the digests.

    At least one image of each class with more than `leave` different images. Equal images are held
    out together, even if their labels differ.
    """
    different, which = np.unique(digests, return_inverse=True)
    classes = np.full(len(different), np.iinfo(labels.dtype).max)
    np.minimum.at(classes, which, labels)
    sizes = np.bincount(classes)
    ends = np.cumsum(sizes)
    # Cumulative rounding over the classes, so that the total is also the right share.
    wanted = np.diff(np.round(share * ends).astype(int), prepend=0)
    wanted = np.minimum(np.maximum(wanted, 1), np.maximum(sizes - leave, 0))
    rank = np.arange(len(different)) - np.repeat(ends - sizes, sizes)
    out = np.empty(len(different), dtype=bool)
    out[np.lexsort((different, classes))] = rank < np.repeat(wanted, sizes)
    return out[which]
