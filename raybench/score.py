"""What a model is worth: accuracy and loss on a split, and the bytes of its file."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from raybench import artefact, measure
from raybench.data import Images, Split, evaluation_batches
from raybench.experiment import Experiment
from raybench.parallel.ddp import Replicas


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: Images, split: Split, replicas: Replicas
) -> tuple[float, float]:
    """Accuracy and mean loss over a split, in fp32, each worker taking its part."""
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for x, y in evaluation_batches(
        images, split, rank=replicas.rank, workers=replicas.workers, device=device
    ):
        logits = model(x).float()
        sums[0] += (logits.argmax(1) == y).sum()
        sums[1] += F.cross_entropy(logits, y, reduction="sum")
    accuracy, loss = (replicas.total(sums) / len(split)).tolist()
    return accuracy, loss


def validated(model: nn.Module, images: Images, replicas: Replicas) -> dict[str, float]:
    """Columns of one pass over the validation images: the scores, and the seconds it took."""
    inference = measure.Stopwatch(next(model.parameters()).device)
    inference.start()
    accuracy, loss = evaluate(model, images, images.validation, replicas)
    inference.stop()
    return {"accuracy": accuracy, "validation_loss": loss, "inference_s": inference.seconds}


def bytes_if_finished(model: nn.Module, experiment: Experiment, images: Images) -> int:
    """Bytes of the file that stopping now would leave: early stopping can compare them."""
    finished = copy.deepcopy(model)
    for _, technique in experiment.techniques():
        technique.finish(finished)
    return artefact.encoded_bytes(finished, experiment, images.classes)


def store_and_score(
    model: nn.Module,
    experiment: Experiment,
    images: Images,
    replicas: Replicas,
    store: Path | None,
) -> dict[str, Any]:
    """Stores the finished model, reads it back into `model`, and scores that on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        path = store if store and replicas.rank == 0 else Path(folder) / "model.safetensors"
        stored = artefact.save(model, experiment, images.classes, path)
        artefact.restore(model, path)
    accuracy, loss = evaluate(model, images, images.test, replicas)
    return {
        "model_bytes": stored,
        "parameters": measure.count_parameters(model),
        "flops": measure.count_flops(model, experiment.image_size),
        "test_accuracy": accuracy,
        "test_loss": loss,
    }
