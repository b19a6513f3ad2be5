"""The options of `raybench.compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Finds the techniques that pay for a model on your data, and writes the recommended recipe.

    Examples:

      python -m raybench.compare
      python -m raybench.compare --model resnet20 --data cifar10 --subset 0.2 --budget 2h
      python -m raybench.compare --model vit192x4 --goal latency --constraint "latency_ms <= 2"
      python -m raybench.compare --model my_models.nets:small_net --data photos --plan

    The baseline and every technique that fits the model get the same tuning and the same seeds.
    A technique pays if the goal improves and accuracy falls by at most --within points, both
    with confidence. After a crash the same command resumes the study; a larger --budget extends
    it.
    """

    model: str = "resnet20"
    """A name, or `package.module:factory` of your own."""
    data: str = "digits"
    """digits, cifar10, cifar100, beans, or a folder of images."""
    subset: float = 1.0
    """Share of the training images to use; a smaller one is faster."""
    image_size: int = 32
    """Side of an image in pixels."""
    start_from: str = ""
    """Initial weights: a trained model's file, RESULTS#TRIAL or timm:hub. Default: random."""
    goal: str = "bytes"
    """What should improve: bytes, latency, train_time, memory or accuracy."""
    within: float = 1.0
    """Points of accuracy that may be lost, for every goal but accuracy."""
    constraint: tuple[str, ...] = ()
    """Bounds on the recommended model, such as "latency_ms <= 2" "model_bytes < 100000"."""
    techniques: str = ""
    """Names separated by commas. Default: all that fit the model."""
    teacher: str = ""
    """A trained model to distil from. Default: the tuned baseline of the study."""
    budget: str = ""
    """Time for the whole study, such as 45m or 2h. Default: as long as the standard study takes."""
    plan: bool = False
    """Prints what the study would run and how long it would take, then exits."""
    price_per_hour: float | None = None
    """Price of an hour of this machine, for the plan."""
    epochs: int | None = None
    """Epochs of each trial. Default: 3, for a quick answer."""
    tuning: int = 3
    """Trials of every arm to choose its learning rate and setting."""
    seeds: int = 4
    """Paired seeds of every arm at first."""
    most_seeds: int = 12
    """Largest number of paired seeds of an arm. Default without --budget: 2 x --seeds."""
    name: str | None = None
    """Name of the study, and of its folder. Default: MODEL-DATA-GOAL."""
    results: Annotated[str, tyro.conf.arg(metavar="DIR|ADDRESS")] = "results"
    """Folder of all results, or an address such as s3://bucket/runs."""
    max_concurrent: int | None = None
    """Most trials at once. Default: as many as fit on the machine or the cluster."""
    wait: float | None = None
    """Seconds to wait for new nodes while no trial has room. Default: 600 with an autoscaler, 60 in
    other clusters."""
    gpus: float | None = None
    """GPUs of each trial, fractions allowed; 0 hides them. Default: 1 if there is any."""
