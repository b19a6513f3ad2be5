"""The input pipeline: one index into an array against a DataLoader with torchvision transforms,
and the decoding of photographs before the first epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from raybench import data
from raybench.bench import photos
from raybench.bench.subject import base

ROUNDS = 7
BATCH = 128
BASELINE_IMAGES = 1280  # fewer images, because the baseline is ten times slower

claims = {
    "images_per_s": "reach 100,000",
    "ratio": "reach 9",
    "decode_peak_ratio": "stay below 1.5",
    "decode_speedup": "reach 1.7 on two cores",
}


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """The usual data set of a training script: one image at a time, transformed by torchvision."""

    def __init__(self, split: data.Split, images: int) -> None:
        from torchvision import transforms

        inner = slice(split.pad, split.pad + split.size)
        pixels = split.pixels[split.rows[:images]][:, inner, inner].numpy()
        self.images = [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]
        self.labels = split.labels[split.rows[:images]].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def measure() -> dict[str, float]:
    """Images per second of processor time, with crop, flip and normalisation; medians of rounds."""
    experiment = base(BATCH)
    images = data.load(experiment)
    loader = DataLoader(PilImages(images.train, BASELINE_IMAGES), BATCH, shuffle=True)

    def ours(epoch: int) -> int:
        return sum(len(y) for _, y in data.batches(images, experiment.recipe, seed=0, epoch=epoch))

    def baseline(_: int) -> int:
        return sum(len(y) for _, y in loader)

    rates: dict[str, list[float]] = {"ours": [], "baseline": []}
    for number in range(ROUNDS + 1):
        for name, epoch in (("ours", ours), ("baseline", baseline)):
            rate = _rate(epoch, number)
            if number:  # the first round pages the file into memory
                rates[name].append(rate)
    ratios = [a / b for a, b in zip(rates["ours"], rates["baseline"], strict=True)]
    return {
        "images_per_s": median(rates["ours"]),
        "baseline_images_per_s": median(rates["baseline"]),
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": ROUNDS,
        **photos.measure(),
    }


def _rate(epoch: Callable[[int], int], number: int) -> float:
    began = time.process_time()
    count = epoch(number)
    return count / (time.process_time() - began)
