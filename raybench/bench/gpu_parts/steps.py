"""Training steps of a model against variants of it, and against the usual script."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from raybench import data, models
from raybench.bench.gpu_parts.rows import Row
from raybench.bench.input import PilImages
from raybench.experiment import Experiment
from raybench.hardware import gpu
from raybench.training.replicated import Replicated

ROUNDS, STEPS = 3, 40  # rounds of this many steps, after one round to warm up
FEW_ROUNDS, FEW_STEPS = 1, 2  # on a CPU, to show that they run
FIGURES = ("images_per_s", "compile_s", "energy_j", "activations_bytes", "parameters_bytes")


def against(
    subject: str,
    plain: Experiment,
    sides: Mapping[str, Mapping[str, Any]],
    usual: bool,
    small: bool,
) -> Iterator[Row]:
    """Interleaved rounds of steps of `plain` and its variants; with `usual`, also of the script."""
    rounds, steps = (FEW_ROUNDS, FEW_STEPS) if small else (ROUNDS, STEPS)
    images = data.load(plain)
    share = min(1.0, (steps * plain.recipe.batch + 0.5) / len(images.train))
    recipe = replace(plain.recipe, epochs=rounds + 1)
    plain = replace(plain, subset=share * plain.subset, recipe=recipe)
    images = data.load(plain)
    runs = {
        side: Replicated(replace(plain, **parts), images)
        for side, parts in {"plain": {}, **sides}.items()
    }
    script = _usual(plain, images) if usual else None
    device = gpu.pick()
    for number in range(1, rounds + 2):
        for side, run in runs.items():
            kept = _forget(device)
            metrics = run.epoch(number).metrics
            if device.type == "cuda":  # the run's own peak: all sides are in memory together
                metrics["step_peak_bytes"] = gpu.peak_bytes(device) - kept
            for figure in (*FIGURES, "step_peak_bytes") if number > 1 else ():
                if figure in metrics:
                    yield Row("a", subject, side, figure, float(metrics[figure]), number - 1)
        if script is not None:
            rate = next(script)
            if number > 1:
                yield Row("a", subject, "usual", "images_per_s", rate, number - 1)


def _forget(device: torch.device) -> int:
    """Resets the allocator's peak; returns the bytes in use."""
    if device.type != "cuda":
        return 0
    gpu.forget_peak(device)
    return gpu.allocated_bytes(device)


def _usual(experiment: Experiment, images: data.Images) -> Iterator[float]:
    """Images per second of the usual script: PIL images through a DataLoader's workers, eager fp32,
    channels first, a loss that is read in every step."""
    device, batch = gpu.pick(), experiment.recipe.batch
    model = models.build(experiment.model, classes=images.classes, image_size=experiment.image_size)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    workers = min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0
    steps = len(images.train) // batch
    loader = DataLoader(
        PilImages(images.train, steps * batch),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    while True:
        began, count = time.perf_counter(), 0
        for x, y in loader:
            optimizer.zero_grad()
            logits = model(x.to(device, non_blocking=True))
            loss = F.cross_entropy(logits, y.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
            loss.item()
            count += len(y)
        yield count / (time.perf_counter() - began)
