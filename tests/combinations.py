"""Parts of an Experiment, any of which are put together on a tiny model; and what each must do.

A part is a technique in one of its settings ("prune", "prune global"), a feature of the recipe
("mixup"), or a way to run a step ("pipeline").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from raybench import artefact, data
from raybench.experiment import (
    Experiment,
    Parallel,
    Pipeline,
    Recipe,
    compatible,
    conflicts,
    preset,
    technique_types,
)
from raybench.models import build
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.parallel.ddp import Replicas
from raybench.reports.technique_matrix import covered
from raybench.techniques import Technique
from raybench.techniques.distill import Distill
from raybench.techniques.layers.weights import weights
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from raybench.training.score import evaluate

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
        epochs = [*preset.load(experiment.family).train(compatible(experiment), store=path)]
    assert [epoch.number for epoch in epochs] == [*range(1, experiment.recipe.epochs + 1)]
    assert all(math.isfinite(epoch.metrics["loss"]) for epoch in epochs)
    return epochs[-1].metrics, stored


def faults(
    experiment: Experiment, metrics: Mapping[str, Any], stored: Mapping[str, Tensor], path: Path
) -> list[str]:
    """What is wrong with a run: effects that are missing, columns that lie, a file that differs."""
    model = artefact.load(path)
    found = [*file_faults(experiment, metrics, stored, path)]
    for name, technique in experiment.techniques():
        reached = metrics.get(f"{name}_coverage")
        if reached is None or not 0 < reached <= 1:
            found.append(f"{name}_coverage is {reached}")
        found += [
            f"{name} declares the column {column}, and reports none"
            for column in technique.columns
            if metrics.get(column) is None
        ]
        found += EFFECTS[name](technique, metrics, model) if name in EFFECTS else []
    return found


def file_faults(
    experiment: Experiment,
    metrics: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    path: Path,
) -> list[str]:
    """How the file, read back, differs from the model that was stored, and from its row."""
    found, model = [], artefact.load(path)
    read = model.state_dict()
    if read.keys() != stored.keys():
        found.append(f"the file's names differ: {sorted(read.keys() ^ stored.keys())[:3]}")
    found += [
        f"{name} is read back with other values"
        for name in read.keys() & stored.keys()
        if not _equal_bits(read[name], stored[name])
    ]
    images = data.load(experiment)
    model.to(memory_format=torch.channels_last)
    accuracy, loss = evaluate(model, images, images.test, Replicas())
    if accuracy != metrics["test_accuracy"] or not math.isclose(
        loss, metrics["test_loss"], rel_tol=1e-5
    ):
        scores = f"{accuracy:.4f}, {loss:.6f}"
        told = f"{metrics['test_accuracy']:.4f}, {metrics['test_loss']:.6f}"
        found.append(f"the file scores {scores}, and the row tells {told}")
    return found


def _equal_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = (one.contiguous().view(-1), other.contiguous().view(-1))
    return torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))


def acted_on(technique: Technique, model: nn.Module) -> dict[str, Tensor]:
    """The values of the parameters on which a technique says that it acts."""
    parameters = dict(model.named_parameters())
    return {n: parameters[n].detach() for n in technique.acts_on(model) if n in parameters}


def _pruned(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    values = acted_on(technique, model)
    total = sum(value.numel() for value in values.values())
    zeros = sum(int((value == 0).sum()) for value in values.values())
    found = []
    if not 0.97 * SPARSITY <= zeros / max(1, total) <= 1:
        found.append(f"prune left {zeros} zeros of {total}")
    if not math.isclose(metrics["sparsity"], zeros / max(1, total), abs_tol=1e-6):
        found.append(f"sparsity tells {metrics['sparsity']}, the file has {zeros / total}")
    return found


def _quantized(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    names = set(technique.acts_on(model))
    found = []
    for weight in weights(model):
        if weight.name in names:
            rows = weight.value.detach().flatten(0, weight.stacked).flatten(1)
            most = max(len(row.unique()) for row in rows)
            if most > 2**BITS:
                found.append(f"{weight.name} has {most} values in a row, and {BITS} bits")
    if metrics["weight_bits"] != BITS:
        found.append(f"weight_bits is {metrics['weight_bits']}")
    return found


def _structured(kind: str) -> Any:
    def check(technique: Any, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
        layers = sum(kind in {k.__name__ for k in type(m).__mro__} for m in model.modules())
        wanted = getattr(technique, "mode", "") != "sparse_to_dense"
        told = metrics["structured_layers"]
        return (
            [] if told == layers and (layers > 0) == wanted else [f"{layers} {kind}, {told} told"]
        )

    return check


def _cut(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    return [] if 0 < metrics["channels"] < 1 else [f"channels is {metrics['channels']}"]


def _switched(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    experts = [m for m in model.modules() if type(m).__name__ == "Experts"]
    found = [] if experts else ["there are no experts"]
    for column in ("load_cv", "router_entropy", "dead_experts"):
        if not math.isfinite(metrics.get(column, math.nan)):
            found.append(f"{column} is {metrics.get(column)}")
    return found + ([] if metrics["router_entropy"] > 0 else ["no token was routed"])


def _taught(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    added = metrics.get("distillation_loss") or 0.0
    return [] if 0 < added < math.inf else [f"distillation_loss is {added}"]


EFFECTS = {
    "switch": _switched,
    "monarch": _structured("MonarchLinear"),
    "low_rank": _structured("LowRankLinear"),
    "prune_channels": _cut,
    "prune": _pruned,
    "quantize": _quantized,
    "distill": _taught,
}
"""What is wrong with a technique's effect, by its field's name. The others have their columns."""
