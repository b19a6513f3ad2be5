"""The training step: `loop.fit` as it is against fp32 + NCHW + DataLoader on the same core."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from raybench import data, models
from raybench.bench.input import PilImages
from raybench.experiment import Experiment, from_json
from raybench.training import process
from raybench.training.loop import fit
from trainers import pruning

ROUNDS = 7
STEPS = 2  # steps per round
ROUND_S = 120  # deadline of one round of the baseline
SUBJECTS = {  # model and batch; large models take a second per step
    "resnet20": ("resnet20", 128),
    "resnet44": ("resnet44", 128),
    "resnet18": ("resnet18", 64),
    "vgg11": ("vgg11", 128),
    "mobilenet_v2": ("mobilenet_v2", 64),
    "vit": ("vit_tiny_patch16_224", 64),  # patch 4 at 32 pixels: 64 tokens of width 192
}

claims = {f"ratio_{name}": "reach 2.0" for name in SUBJECTS}


def measure() -> dict[str, float]:
    """Images per second of both sides, medians of interleaved rounds, and their ratio."""
    figures: dict[str, float] = {}
    for name, (model, batch) in SUBJECTS.items():
        # digits: real 32x32 images; with few validation images the rounds follow quickly.
        experiment = replace(
            pruning.base,
            model=model,
            recipe=replace(pruning.base.recipe, batch=batch, epochs=ROUNDS + 2, lr=0.01),
        )
        images = data.load(experiment)
        share = (STEPS * batch + 0.5) / len(images.train)
        experiment = replace(experiment, subset=min(1.0, share))
        baseline = Baseline(experiment)
        sides: dict[str, Iterator[float]] = {"ours": _ours(experiment), "baseline": baseline}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(ROUNDS + 1):
            for side, rounds in sides.items():
                rate = next(rounds)
                if number:  # the first round chooses oneDNN's kernels
                    rates[side].append(rate)
        baseline.close()
        ratios = [a / b for a, b in zip(rates["ours"], rates["baseline"], strict=True)]
        figures |= {
            f"ratio_{name}": median(ratios),
            f"ratio_{name}_min": min(ratios),
            f"ratio_{name}_max": max(ratios),
            f"images_per_s_{name}": median(rates["ours"]),
            f"baseline_images_per_s_{name}": median(rates["baseline"]),
        }
    return figures | {"rounds": ROUNDS}


class Baseline:
    """The other side in its own process, because `process.prepare` affects a whole process."""

    def __init__(self, experiment: Experiment) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(experiment.to_json(), there))
        self._process.start()

    def __iter__(self) -> Baseline:
        return self

    def __next__(self) -> float:
        self._pipe.send("round")
        if not self._pipe.poll(ROUND_S):
            raise TimeoutError(f"the baseline took more than {ROUND_S} s")
        return float(self._pipe.recv())

    def close(self) -> None:
        self._process.terminate()
        self._process.join(ROUND_S)


def _serve(experiment: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    rounds = _baseline(from_json(experiment))
    while pipe.recv() == "round":
        pipe.send(next(rounds))


def _ours(experiment: Experiment) -> Iterator[float]:
    process.prepare(threads=1)
    images = data.load(experiment)
    for epoch in fit(experiment, images):
        yield epoch.metrics["images_per_s"]


def _baseline(experiment: Experiment) -> Iterator[float]:
    """The usual training script: PIL images through a DataLoader, fp32, NCHW, SGD."""
    images = data.load(experiment)
    model = models.build(experiment.model, classes=images.classes, image_size=32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    dataset = PilImages(images.train, STEPS * experiment.recipe.batch)
    loader = DataLoader(dataset, experiment.recipe.batch, shuffle=True, drop_last=True)
    while True:
        began, count = time.perf_counter(), 0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
            count += len(y)
        yield count / (time.perf_counter() - began)
