"""What each of two workers measures of every strategy."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raybench import data, parallel
from raybench.experiment import Experiment, Parallel, Recipe
from raybench.models import build
from raybench.parallel import memory, traffic
from raybench.parallel.checkpointing import checkpoint_blocks
from raybench.parallel.memory import Activations
from raybench.parallel.powersgd import WARMUP
from raybench.training.loop import fit
from raybench.training.optim import build_optimizer

WORKERS, BATCH, BEFORE, AFTER = 2, 16, 3, 2


EXACT = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")


LOSSY = {"bf16_gradients": 2e-3, "powersgd": 5e-2}  # largest relative difference of a loss


BASE = Experiment(
    family="strategies",
    model="vit32x2",
    image_size=8,
    subset=0.2,
    recipe=Recipe(batch=BATCH, optimizer="adamw", lr=1e-3, crop=1, precision="fp32"),
)


WITH_SGD = replace(
    BASE,
    model="mixer32x1",
    recipe=replace(BASE.recipe, optimizer="sgd", lr=0.02),
    parallel=Parallel(checkpointing=True),
)


CONVOLUTIONS = replace(BASE, model="resnet20", recipe=replace(BASE.recipe, lr=1e-4))


def spread(experiment: Experiment, strategy: str) -> Experiment:
    return replace(experiment, parallel=replace(experiment.parallel, strategy=strategy))


CASES: dict[str, tuple[Experiment, int]] = {  # with the seed of the first weights
    **{f"{name} vit": (spread(BASE, name), 0) for name in (*EXACT, *LOSSY)},
    **{f"{name} mixer sgd": (spread(WITH_SGD, name), 1) for name in EXACT[:4]},
    **{f"{name} resnet": (spread(CONVOLUTIONS, name), 2) for name in ("zero1", "zero3")},
}


FITTED = replace(BASE, image_size=32, subset=0.1, recipe=replace(BASE.recipe, epochs=2))


class Run:
    """What `fit` sets up, step by step, in this process: alone or as one of the workers."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self.experiment = experiment
        self.images, self.replicas = data.load(experiment), parallel.replicas(experiment.parallel)
        torch.manual_seed(seed)
        self.model = build(experiment.model, classes=10, image_size=experiment.image_size)
        self.model.to(memory_format=torch.channels_last)
        if experiment.model == "resnet20":
            self.model.eval()  # a batch norm in training knows its worker's share alone
        if experiment.parallel.checkpointing:
            checkpoint_blocks(self.model)
        self.wrapped = self.replicas.wrap(self.model)
        self.optimizer = self.replicas.spread(build_optimizer(self.wrapped, experiment.recipe))

    def steps(self, first: int, count: int) -> list[float]:
        share = {"rank": self.replicas.rank, "workers": self.replicas.workers}
        batches = data.batches(self.images, self.experiment.recipe, seed=0, epoch=1, **share)
        losses = []
        for x, y in islice(batches, first, first + count):
            self.optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.wrapped(x), y)
            loss.backward()
            self.optimizer.step()
            losses.append(float(self.replicas.total(loss.detach().clone()) / self.replicas.workers))
        return losses

    def whole(self) -> dict[str, Tensor]:
        return {n: t.clone() for n, t in self.replicas.whole(self.model).state_dict().items()}


def found_of(experiment: Experiment, seed: int, state: Path, other: Path | None) -> dict[str, Any]:
    run = Run(experiment, seed)
    found: dict[str, Any] = {"losses": run.steps(0, BEFORE), "whole": run.whole()}
    saved = run.replicas.state(run.model, run.optimizer)
    if run.replicas.rank == 0:
        torch.save(saved, state)
    found["next"] = run.steps(BEFORE, AFTER)
    if other:
        again = Run(experiment, 99)
        again.replicas.load(again.model, again.optimizer, torch.load(other))
        found["next of other"] = again.steps(BEFORE, AFTER)
    return found


def counted(strategy: str) -> dict[str, Any]:
    """Two steps' bytes by kind, and those of theory; `powersgd` beyond its warm-up."""
    small = replace(BASE, model="vit64x2", image_size=32)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    experiment = replace(small, parallel=Parallel(strategy=strategy, workers=workers))
    run = Run(experiment, 0)
    run.steps(0, 2 if strategy != "powersgd" else WARMUP + 2)
    x, _ = next(iter(data.batches(run.images, experiment.recipe, seed=0, epoch=1)))
    activations = Activations(x)
    with activations:
        run.wrapped(x[: BATCH // workers])
    run.replicas.sent_bytes_per_step(run.model, 1)  # from zero again
    run.steps(2, 1)
    plain = build(experiment.model, classes=10, image_size=32)
    return {
        "held": memory.held(run.model, run.optimizer, run.replicas.beside())
        | {"activations_bytes": activations.bytes},
        "theory": memory.theory(plain, experiment),
        "sent": run.replicas.sent_bytes_per_step(run.model, 1),
        "sent in theory": traffic.theory(plain, experiment),
    }


def fitted(folder: Path, resume: Path | None, strategy: str) -> list[dict[str, Any]]:
    """The epochs of a small run, or of what is left of it."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    experiment = replace(FITTED, parallel=Parallel(strategy=strategy, workers=workers))
    metrics = []
    for epoch in fit(experiment, data.load(experiment), resume=resume):
        metrics.append(epoch.metrics)
        if epoch.number == 1:
            epoch.save(folder / f"{strategy}.fit")
    if workers > 1:
        dist.barrier()  # the first worker writes the file that all of them read
    return metrics


def measured(folder: Path, others: Path | None, shift: int) -> dict[str, Any]:
    return {
        name: found_of(
            experiment,
            seed + shift,
            folder / f"{name}.pt",
            others / f"{name}.pt" if others else None,
        )
        for name, (experiment, seed) in CASES.items()
    }


def worker(rank: int, folder: Path, others: Path) -> dict[str, Any]:
    return {
        # Other first weights in each worker: those of the first one have to win.
        "parity": measured(folder, others, shift=7 * rank),
        "bytes": {name: counted(name) for name in (*EXACT, *LOSSY)},
        "zero2 from one process": fitted(folder, others / "ddp.fit", "zero2"),
        "zero2": fitted(folder, None, "zero2"),
        "zero3 from zero2": fitted(folder, folder / "zero2.fit", "zero3"),
    }
