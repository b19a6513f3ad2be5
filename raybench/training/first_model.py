"""The model at the start of a run: initial weights, the techniques' layers, memory layout."""

from __future__ import annotations

import torch
from torch import nn

from raybench import artefact
from raybench.experiment import Experiment
from raybench.models import avoid_slow_bf16, build, require_source
from raybench.training import measure, trained


def laid_out(experiment: Experiment, classes: int, device: torch.device) -> nn.Module:
    """The model after the techniques' `reshape`, on the device, in the layout for its kernels."""
    torch.manual_seed(experiment.seed)
    model = first_model(experiment, classes)
    # Techniques act in the order of Experiment's fields, here and everywhere.
    for _, technique in experiment.techniques():
        technique.reshape(model)
    # channels_last: 1.1 to 1.6 times faster convolutions on a CPU, harmless elsewhere.
    model.to(device).to(memory_format=torch.channels_last)
    dtype, _ = measure.pick_dtype(experiment.recipe.precision, device)
    if device.type == "cpu" and dtype == torch.bfloat16:
        avoid_slow_bf16(model)
    return model


def first_model(experiment: Experiment, classes: int) -> nn.Module:
    """The plain model; its initial weights come from `start_from`, if set. Raises ValueError."""
    require_source(experiment)
    name, size, start = experiment.model, experiment.image_size, experiment.start_from
    if start.startswith("timm:"):
        pretrained = start.removeprefix("timm:")
        if not pretrained:
            raise ValueError("start_from is 'timm:': use timm:hub or timm:FILE")
        return build(name, classes=classes, image_size=size, pretrained=pretrained)
    model = build(name, classes=classes, image_size=size)
    if start:
        artefact.restore(model, trained.find(start))
    return model
