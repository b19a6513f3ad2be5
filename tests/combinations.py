"""Parts of an Experiment, any of which are put together on a tiny model and trained.

A part is a technique in one of its settings ("prune", "prune global"), a feature of the recipe
("mixup"), or a way to run a step ("pipeline").
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

from raybench import artefact
from raybench.experiment import (
    Experiment,
    Parallel,
    Pipeline,
    Recipe,
    conflicts,
    technique_types,
)
from raybench.models import build
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.reports.technique_matrix import covered
from raybench.techniques import Technique
from raybench.techniques.distill import Distill
from raybench.techniques.ema import Ema
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from raybench.training import trainer

MODELS = ("vit32x2", "resnet20_b")
"""The first of them that fits all techniques of a combination is taken."""

BASE = Experiment(
    family="pruning",
    model=MODELS[0],
    image_size=8,
    subset=0.1,
    recipe=Recipe(epochs=2, batch=32, crop=1, lr=0.02, precision="fp32"),
)
"""129 digits of 8x8 pixels: 2 epochs of 4 steps."""

SPARSITY, BITS = 0.6, 4

SETTINGS: dict[str, Technique] = {
    "switch": Switch(experts=2, blocks="all"),
    "switch of two": Switch(experts=4, blocks="second", top_k=2, shared_expert=True),
    "monarch": Monarch(blocks=2),
    "monarch dense_to_sparse": Monarch(blocks=2, mode="dense_to_sparse", switch_at=0.5),
    "monarch sparse_to_dense": Monarch(blocks=2, mode="sparse_to_dense", switch_at=0.5),
    "low_rank": LowRank(blocks=2),
    "prune_channels": PruneChannels(ratio=0.5, round_to=4, at=0.5),
    "prune_channels at the end": PruneChannels(ratio=0.5, round_to=4, at=1.0),
    "prune": Prune(final_sparsity=SPARSITY, begin=0.6, end=0.9, frequency=1, scope="layer"),
    "prune global": Prune(final_sparsity=SPARSITY, begin=0.6, end=0.9, frequency=1),
    "quantize": Quantize(bits=BITS, activation_bits=BITS, ends_bits=BITS, begin=0.6),
    "quantize at the end": Quantize(bits=BITS, ends_bits=BITS, activation_bits=32, begin=1.0),
    "distill": Distill(teacher="teacher", weight=0.5),
    "ema": Ema(decay=0.5),
}
"""By the name of the field, then of the setting. A technique that is not here has its defaults."""

RECIPES: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.4},
    "cutout": {"cutout": 3},
    "label_smoothing": {"label_smoothing": 0.1},
    "renew_norms": {"renew_norms": 2},
    "adamw": {"optimizer": "adamw", "lr": 2e-3},
    "bf16": {"precision": "bf16"},
}

EXECUTIONS: dict[str, dict[str, Any]] = {
    "pipeline": {"pipeline": Pipeline(chunks=2), "family": "pipeline"},
    "checkpointing": {"parallel": Parallel(checkpointing=True)},
}


def settings() -> dict[str, Technique]:
    """A technique for each of its settings, all techniques that an Experiment has among them."""
    fields = {name.split()[0] for name in SETTINGS}
    return SETTINGS | {
        name: kind() for name, kind in technique_types().items() if name not in fields
    }


def parts() -> list[str]:
    return [*settings(), *RECIPES, *EXECUTIONS]


def pairs() -> list[tuple[str, str]]:
    """Every two parts that are not settings of one technique."""
    return [
        (one, other)
        for one, other in combinations(parts(), 2)
        if one.split()[0] != other.split()[0]
    ]


def together(*names: str, teacher: Path | None = None, model: str = "") -> Experiment:
    """The experiment of these parts, on a model that fits them where there is one."""
    experiment = BASE
    for name in names:
        if name in settings():
            technique = settings()[name]
            if isinstance(technique, Distill):
                technique = replace(technique, teacher=str(teacher))
            experiment = replace(experiment, **{name.split()[0]: technique})
        elif name in RECIPES:
            experiment = replace(experiment, recipe=replace(experiment.recipe, **RECIPES[name]))
        else:
            experiment = replace(experiment, **EXECUTIONS[name])
    return replace(experiment, model=model or _fitting(experiment))


def _fitting(experiment: Experiment) -> str:
    techniques = [technique for _, technique in experiment.techniques()]
    for name in MODELS:
        if all(isinstance(reach(name, technique), float) for technique in techniques):
            return name
    return MODELS[0]


@cache
def reach(model: str, technique: Technique) -> float | str:
    """Coverage of a technique on one of the models, or why it does not fit."""
    plain = build(model, classes=10, image_size=BASE.image_size)
    return covered(plain, technique)


def refusal(experiment: Experiment) -> str:
    """Why the experiment is refused, in one line: by a declaration, or as its model is."""
    for reason in conflicts(experiment):
        return reason
    for name, technique in experiment.techniques():
        reached = reach(experiment.model, technique)
        if isinstance(reached, str):
            return f"{name}: {reached}"
    if experiment.parallel.checkpointing:
        try:
            checkpoint_blocks(build(experiment.model, classes=10, image_size=BASE.image_size))
        except ValueError as error:
            return str(error)
    return ""


def train(experiment: Experiment, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The last metrics of a run that stores its model, and the state_dict that was stored."""
    stored: dict[str, Tensor] = {}
    save = artefact.save

    def kept(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stored.update({name: value.clone() for name, value in model.state_dict().items()})
        return save(model, *args, **kwargs)

    with mock.patch.object(artefact, "save", kept):
        epochs = [*trainer.train(experiment, store=path)]
    assert [epoch.number for epoch in epochs] == [*range(1, experiment.recipe.epochs + 1)]
    assert all(math.isfinite(epoch.metrics["loss"]) for epoch in epochs)
    return epochs[-1].metrics, stored
