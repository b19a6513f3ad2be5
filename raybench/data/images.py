"""Images as one uint8 array, and batches that are cut from it by a single index.

A data set is decoded once per machine into padded uint8 arrays and memory-mapped, so that all
trials on a node share one copy. There is no DataLoader and no worker process: one core makes about
150,000 augmented 32x32 images/s (`python -m raybench.bench input`), 10 to 15 times as many as a
DataLoader with torchvision's transforms.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raybench.data import augment, cache, seen
from raybench.data.inputs import Inputs, scale_and_shift
from raybench.data.split import Split
from raybench.experiment import Experiment, Recipe


@dataclass(frozen=True)
class Images:
    """A data set in three splits, and its mean and std per channel, in units of 0 to 255."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    mirror: bool
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inherited: str = ""
    """The training images of the run's start model and teacher, in the format of `seen`."""

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def inputs(self) -> Inputs:
        """The inputs of a model trained on these images, for its file."""
        return Inputs(
            class_names=self.class_names, mean=self.mean, std=self.std, image_size=self.train.size
        )

    @cached_property
    def seen(self) -> str:
        """The training images of a model that is trained on this data, in the format of `seen`."""
        sketch = seen.sketch(self.train.its_digests, Path(self.name).name)
        return seen.united(sketch, self.inherited)

    def held_out(self) -> dict[str, np.ndarray]:
        """Digests of the images that the run's start model and teacher must not have trained on.

        Excluded are images with a copy among the source's own training images, because every model
        that was trained on the same data has seen them.
        """
        splits = {"validation": self.validation, "test": self.test}
        trained = np.ones(len(self.train.digests), dtype=bool)
        for split in splits.values():
            if split.pixels is self.train.pixels:
                trained[split.rows.numpy()] = False
        trained_digests = self.train.digests[trained]
        return {
            name: np.setdiff1d(split.its_digests, trained_digests) for name, split in splits.items()
        }


def load(experiment: Experiment) -> Images:
    """The data set of an experiment. Its splits are the same for every seed.

    Decoded on first use into `$RAYBENCH_CACHE` (by default `~/.cache/raybench`).

    Raises:
        ValueError: no such data, no images, too few, a broken image, a label out of range, or a
            crop wider than the padding.
    """
    root = os.environ.get("RAYBENCH_DATA", "")
    decoded = cache.decoded(experiment.data, experiment.image_size, root)
    train = decoded.splits["train"]
    generator = torch.Generator().manual_seed(experiment.seed)
    rows = train.rows[torch.randperm(len(train), generator=generator)]
    if experiment.subset < 1:
        chosen = class_by_class(train.labels[rows])[: round(experiment.subset * len(rows))]
        rows = rows[chosen]
    images = Images(
        name=experiment.data,
        sha256=decoded.sha256,
        class_names=decoded.class_names,
        mirror=decoded.mirror,
        train=replace(train, rows=rows),
        validation=decoded.splits["validation"],
        test=decoded.splits["test"],
        mean=decoded.mean,
        std=decoded.std,
    )
    if experiment.recipe.crop > images.train.pad:
        raise ValueError(
            f"recipe.crop is {experiment.recipe.crop}; images of {experiment.image_size} pixels "
            f"are padded by {images.train.pad}, so use that or less"
        )
    if len(images.train) < experiment.recipe.batch:
        raise ValueError(
            f"recipe.batch is {experiment.recipe.batch}, but {experiment.data} has only "
            f"{len(images.train)} images to train on; take a smaller batch or a larger subset"
        )
    return images


def class_by_class(labels: Tensor) -> Tensor:
    """An order of the labels (N,) in which every prefix has the classes in proportion, and each
    class occurs once before any occurs twice."""
    grouped = labels.argsort(stable=True)
    counts = labels.bincount()
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    share = rank / counts.repeat_interleave(counts)
    return grouped[share.argsort(stable=True)]


def batches(
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    workers: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of one epoch: x (B, 3, S, S) normalised, channels last; y (B,).

    With `recipe.mixup` y is (B, classes), the share of each class in each image.

    Order and augmentation depend only on seed and epoch. They are drawn for the whole batch, of
    which worker `rank` gets its part. So the global batches do not depend on the number of workers,
    and a run that resumes at an epoch continues exactly. The last, partial batch is dropped, so
    that shapes are constant.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    order = torch.randperm(len(images.train), generator=generator)
    mirrored = torch.rand(len(images.train), generator=torch.Generator().manual_seed(seed)) < 0.5
    share = recipe.batch // workers
    part = slice(rank * share, (rank + 1) * share)
    # mixup pairs images with the reversed batch, because the order is already random.
    partners = slice(recipe.batch - part.stop, recipe.batch - part.start)
    shifts = 2 * recipe.crop + 1
    first = images.train.pad - recipe.crop
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        chosen = order[start : start + recipe.batch]
        y, x = first + torch.randint(shifts, (2, recipe.batch), generator=generator)
        # A fixed flip per image, inverted every other epoch: every pair of epochs shows an image
        # both ways. Independent flips would show half of the images only one way.
        flip = mirrored[chosen] ^ (epoch % 2 == 1)
        flip &= recipe.flip and images.mirror
        drawn = [chosen, y, x, flip]
        if recipe.cutout:  # if it is off it draws nothing, so later draws stay the same
            drawn += augment.middles(recipe.batch, images.train.size, generator)
        batch = _part(images, recipe, [t[part] for t in drawn], device)
        if recipe.mixup:
            weight = augment.mixing_share(recipe.mixup, generator)
            other = batch  # a single worker already has the partners
            if workers > 1:
                other = _part(images, recipe, [t[partners] for t in drawn], device)
            last_first = other[0].flip(0), other[1].flip(0)
            batch = augment.mixup(batch, weight, last_first, images.classes)
        yield batch


def _part(
    images: Images, recipe: Recipe, drawn: list[Tensor], device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """A part of a batch, augmented by the given draws: crop, flip, cutout."""
    chosen, y, x, flip, *middles = drawn
    pixels, labels = _cut(images, images.train, chosen, y, x, flip, device)
    if middles:
        augment.cutout(pixels, middles[0], middles[1], recipe.cutout)
    return pixels, labels


def evaluation_batches(
    images: Images,
    split: Split,
    *,
    batch: int = 500,
    rank: int = 0,
    workers: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of a split once, without crop; each of several workers gets its part."""
    part = torch.arange(rank, len(split), workers)
    for chosen in part.split(batch):
        centre = torch.full_like(chosen, split.pad)
        unflipped = torch.zeros_like(chosen, dtype=torch.bool)
        yield _cut(images, split, chosen, centre, centre, unflipped, device)


def pixel_batches(split: Split, *, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of a split once, as plain pixels: (B, S, S, 3) of uint8; y (B,)."""
    inside = slice(split.pad, split.pad + split.size)
    for rows in split.rows.split(batch):
        yield split.pixels[rows][:, inside, inside].contiguous(), split.labels[rows]


def _cut(
    images: Images,
    split: Split,
    chosen: Tensor,
    y: Tensor,
    x: Tensor,
    flip: Tensor,
    device: torch.device | None,
) -> tuple[Tensor, Tensor]:
    """Crops at (y, x), flips where `flip` is set, normalises.

    All windows of all images are one strided view of shape (N, shifts, shifts, S, 3 S), and a
    single index copies the wanted ones. Rows of 3 S bytes are contiguous, so the result is channels
    last without a transposition: 169k images/s on a core, against 142k with channels first and 90k
    with the flip as `torch.where` over the batch.
    """
    rows, pixels, labels = split.rows[chosen], split.pixels, split.labels
    if device is not None and pixels.device != device:
        rows, y, x, flip = (t.to(device, non_blocking=True) for t in (rows, y, x, flip))
        pixels, labels = _resident(pixels, device), _resident(labels, device)
    count, side, size = len(rows), pixels.shape[1], split.size
    windows = pixels.view(-1, side, 3 * side).unfold(1, size, 1).unfold(2, 3 * size, 3)
    cut = windows[rows, y, x].view(count, size, size, 3)
    if cut.is_cuda:  # the number of flipped images would be counted on the host
        cut = torch.where(flip.view(-1, 1, 1, 1), cut.flip(2), cut)
    else:
        flipped = flip.nonzero().squeeze(1)
        cut[flipped] = cut[flipped].flip(2)
    scale, shift = _row_scale_and_shift(images.mean, images.std, size, cut.device)
    normal = cut.view(count, size, 3 * size).float().mul_(scale).add_(shift)
    return normal.view(count, size, size, 3).permute(0, 3, 1, 2), labels[rows]


@lru_cache(maxsize=16)  # a copy from the host to a GPU in every step would wait for it
def _row_scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`scale_and_shift` for rows of `size` pixels, (3 size,) each."""
    scale_C, shift_C = scale_and_shift(mean, std, device)
    return scale_C.repeat(size), shift_C.repeat(size)


_RESIDENT: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
MOST_RESIDENT = 16  # arrays: pixels and labels of the splits of `cache.decoded`'s data sets


def _resident(array: Tensor, device: torch.device) -> Tensor:
    """The array on the device, copied once per process (padded CIFAR-10 has 230 MB).

    The source array is kept too, because the key is its address, which could be reused.
    """
    key = (array.data_ptr(), device)
    if key not in _RESIDENT:
        if len(_RESIDENT) >= MOST_RESIDENT:
            del _RESIDENT[next(iter(_RESIDENT))]  # the oldest
        _RESIDENT[key] = (array, array.to(device, non_blocking=True))
    return _RESIDENT[key][1]


def _mixed(seed: int, epoch: int) -> int:
    """A generator's seed from two numbers; successive epochs get independent streams."""
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
