"""Coverage: checks before training whether an experiment's techniques fit its model."""

from __future__ import annotations

import torch
from torch import nn

from raybench.experiment import Experiment
from raybench.models import build, without_memory
from raybench.techniques.layers.weights import coverage


def fits(experiment: Experiment, classes: int) -> dict[str, float]:
    """`<technique>_coverage` of every active technique: the share of the weights it acts on.

    Raises:
        ValueError: a technique fits no layer of the model.
    """
    if not experiment.techniques():
        return {}
    try:
        with without_memory():
            model = _reshaped(experiment, classes)
    except (NotImplementedError, RuntimeError, ValueError):  # a layer reads the weights' values
        with torch.random.fork_rng():
            model = _reshaped(experiment, classes)
    shares = {}
    for name, technique in experiment.techniques():
        share = coverage(model, technique.acts_on(model))
        if not share:
            raise ValueError(
                f"{name} acts on no weight of {experiment.model}: the model has no layer of the "
                f"kinds that {name} supports; use another model, or leave {name} out"
            )
        shares[f"{name}_coverage"] = share
    return shares


def _reshaped(experiment: Experiment, classes: int) -> nn.Module:
    model = build(experiment.model, classes=classes, image_size=experiment.image_size)
    for _, technique in experiment.techniques():
        technique.reshape(model)
    return model
