"""An experiment as a part runs it: unchanged on a GPU, shortened to seconds on a CPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from raybench.bench.subject import has_cifar10
from raybench.experiment import Experiment


def sized(experiment: Experiment, small: bool, epochs: int = 0, **parts: Any) -> Experiment:
    """The experiment with its schedule over `epochs`; if `small`, on a few digits.

    The default data, digits of 32 pixels, become CIFAR-10. If $RAYBENCH_DATA lacks the data, digits
    of the same size replace them.
    """
    changed = replace(experiment, latency=False, **parts)
    recipe = replace(changed.recipe, epochs=epochs or changed.recipe.epochs)
    if not small:
        named = changed.data != "digits" or changed.image_size != 32
        return replace(changed, data=_there(changed.data if named else "cifar10"), recipe=recipe)
    precision = recipe.precision if recipe.precision == "fp32" else "auto"
    tiny = replace(recipe, epochs=2, batch=32, crop=1, precision=precision)
    vit = "vit" in changed.model or "mixer" in changed.model
    model = "vit32x2" if vit else "resnet20"
    return replace(changed, model=model, data="digits", image_size=8, subset=0.1, recipe=tiny)


def _there(data: str) -> str:
    if data == "cifar10":
        return data if has_cifar10() else "digits"
    folder = Path(os.environ.get("RAYBENCH_DATA", "")) / data
    return data if data == "digits" or folder.is_dir() else "digits"
