"""What is wrong with a run of `combinations`: effects that are missing, rows and files that lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from combinations import BITS, SPARSITY
from torch import Tensor, nn

from raybench import artefact, data
from raybench.experiment import Experiment
from raybench.parallel.ddp import Replicas
from raybench.techniques import Technique
from raybench.techniques.layers.experts import Experts
from raybench.techniques.layers.weights import weights
from raybench.training.score import evaluate


def faults(
    experiment: Experiment, metrics: Mapping[str, Any], stored: Mapping[str, Tensor], path: Path
) -> list[str]:
    """What is wrong with a run: effects that are missing, columns that lie, a file that differs."""
    model = artefact.load(path)
    all_faults = [*file_faults(experiment, metrics, stored, path)]
    for name, technique in experiment.techniques():
        reached = metrics.get(f"{name}_coverage")
        if reached is None or not 0 < reached <= 1:
            all_faults.append(f"{name}_coverage is {reached}")
        all_faults += [
            f"{name} declares the column {column}, and reports none"
            for column in technique.columns
            if metrics.get(column) is None
        ]
        all_faults += EFFECTS[name](technique, metrics, model) if name in EFFECTS else []
    return all_faults


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
        if not equal_bits(read[name], stored[name])
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


def equal_bits(one: Tensor, other: Tensor) -> bool:
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
    experts = [m for m in model.modules() if isinstance(m, Experts)]  # rounded ones too
    all_faults = [] if experts else ["there are no experts"]
    for column in ("load_cv", "router_entropy", "dead_experts"):
        if not math.isfinite(metrics.get(column, math.nan)):
            all_faults.append(f"{column} is {metrics.get(column)}")
    return all_faults + ([] if metrics["router_entropy"] > 0 else ["no token was routed"])


def _taught(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    added = metrics.get("distillation_loss") or 0.0
    return [] if 0 < added < math.inf else [f"distillation_loss is {added}"]


def _averaged(technique: Technique, metrics: Mapping[str, Any], model: nn.Module) -> list[str]:
    distance = metrics.get("ema_distance") or 0.0
    return [] if 0 < distance < math.inf else [f"ema_distance is {distance}"]


EFFECTS = {
    "switch": _switched,
    "monarch": _structured("MonarchLinear"),
    "low_rank": _structured("LowRankLinear"),
    "prune_channels": _cut,
    "prune": _pruned,
    "quantize": _quantized,
    "distill": _taught,
    "ema": _averaged,
}
"""What is wrong with a technique's effect, by its field's name. The others have their columns."""
