"""The benches' experiment: ResNet-20 on CIFAR-10 if RAYBENCH_DATA has it, else on digits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from raybench.experiment import Experiment
from trainers import pruning


def base(batch: int) -> Experiment:
    """The pruning family's dense base with this batch size."""
    return replace(
        pruning.base,
        data="cifar10" if has_cifar10() else "digits",
        recipe=replace(pruning.base.recipe, batch=batch),
    )


def has_cifar10() -> bool:
    """Whether RAYBENCH_DATA has CIFAR-10 in the hub's format."""
    return (Path(os.environ.get("RAYBENCH_DATA", "")) / "cifar10" / "plain_text").is_dir()
