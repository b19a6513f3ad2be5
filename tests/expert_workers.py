"""What each of two workers with a half of the experts measures."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raybench import data, parallel
from raybench.experiment import Experiment, Parallel, Recipe
from raybench.models import build
from raybench.techniques import Batch
from raybench.techniques.switch import Switch, mixtures
from raybench.training.loop import fit
from raybench.training.optim import build_optimizer

WORKERS, EXPERTS, BATCH, TOKENS, WIDTH = 2, 4, 32, 5, 32


SWITCH = Switch(experts=EXPERTS, blocks="all", jitter=0.0)


EXPERIMENT = Experiment(
    family="switch_vit",
    model=f"vit{WIDTH}x2",
    image_size=8,
    subset=0.2,
    recipe=Recipe(epochs=2, batch=BATCH, optimizer="adamw", lr=1e-3, crop=1, precision="fp32"),
    parallel=Parallel(strategy="expert"),
    switch=SWITCH,
)


WITH_SGD = replace(EXPERIMENT, recipe=replace(EXPERIMENT.recipe, optimizer="sgd", lr=0.05))


OPTIMIZERS = {"adamw": EXPERIMENT, "sgd": WITH_SGD}


BEFORE, AFTER = 3, 2  # steps before a state is saved, and after it


class Run:
    """What `fit` sets up, step by step, in this process: alone or as one of the workers."""

    def __init__(self, experiment: Experiment, seed: int = 0) -> None:
        self.experiment = experiment
        self.images, self.replicas = data.load(experiment), parallel.replicas(experiment.parallel)
        torch.manual_seed(seed)
        self.model = build(experiment.model, classes=10, image_size=experiment.image_size)
        for _, technique in experiment.techniques():
            technique.reshape(self.model)
        self.wrapped = self.replicas.wrap(self.model)
        self.optimizer = build_optimizer(self.wrapped, experiment.recipe)

    def batches(self) -> Any:
        share = {"rank": self.replicas.rank, "workers": self.replicas.workers}
        return data.batches(self.images, self.experiment.recipe, seed=0, epoch=1, **share)

    def backward(self, x: Tensor, y: Tensor) -> float:
        """One step's gradients, and the loss of the whole batch."""
        logits = self.wrapped(x)
        loss = F.cross_entropy(logits.float(), y)
        for _, technique in self.experiment.techniques():
            loss = loss + technique.penalty(self.model, Batch(x, y, logits), {})
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return float(self.replicas.total(loss.detach()) / self.replicas.workers)

    def steps(self, first: int, count: int) -> list[float]:
        losses = []
        for x, y in islice(self.batches(), first, first + count):
            losses.append(self.backward(x, y))
            self.optimizer.step()
        return losses

    def whole(self) -> dict[str, Tensor]:
        return {n: t.clone() for n, t in self.replicas.whole(self.model).state_dict().items()}


def route_all_to_first(model: nn.Module) -> None:
    """Every token's largest logit is that of expert 0."""
    for block in model.blocks:
        block.norm2.bias.data.fill_(0.1)  # the sum of a normalized token is that of the bias
        block.mlp.router.weight.data.zero_()[0] = 1.0


def spread(model: nn.Module) -> None:
    """Routers that send tokens to every expert: a fresh one prefers a few."""
    generator = torch.Generator().manual_seed(0)
    for mixture in mixtures(model):
        mixture.router.weight.data.normal_(generator=generator)


def gradients(experiment: Experiment, seed: int, *, forced: bool = False) -> dict[str, Any]:
    run = Run(experiment, seed)
    if forced:
        route_all_to_first(run.model)
    else:
        spread(run.model)
    loss = run.backward(*next(run.batches()))
    reduced = sum(p.numel() for p in run.replicas.reduced(run.model)) * 4
    return {
        "loss": loss,
        "gradients": {name: p.grad for name, p in run.model.named_parameters()},
        "sent": run.replicas.sent_bytes_per_step(run.model, 1) - reduced,
        "again": run.replicas.sent_bytes_per_step(run.model, 1) - reduced,
        "rows": [len(m.experts.weight1) for m in mixtures(run.model)],
    }


def forced_bf16_bytes() -> float:
    run = Run(EXPERIMENT)
    route_all_to_first(run.model)
    x, _ = next(run.batches())
    with torch.autocast("cpu", torch.bfloat16):
        run.wrapped(x).sum().backward()
    reduced = sum(p.numel() for p in run.replicas.reduced(run.model)) * 4
    return run.replicas.sent_bytes_per_step(run.model, 1) - reduced


def trained(experiment: Experiment, seed: int, other: Path | None, state: Path) -> dict[str, Any]:
    """Losses of some steps, the state after them, and losses on from it and from another's."""
    run = Run(experiment, seed)
    found: dict[str, Any] = {"losses": run.steps(0, BEFORE), "whole": run.whole()}
    saved = run.replicas.state(run.model, run.optimizer)
    if run.replicas.rank == 0:
        torch.save(saved, state)
    found["next"] = run.steps(BEFORE, AFTER)
    if other:
        found["next of other"] = resumed(experiment, other)
    return found


def resumed(experiment: Experiment, state: Path) -> list[float]:
    run = Run(experiment, seed=99)
    run.replicas.load(run.model, run.optimizer, torch.load(state))
    return run.steps(BEFORE, AFTER)


def fitted(experiment: Experiment, folder: Path) -> dict[str, Any]:
    images, metrics = data.load(experiment), []
    for epoch in fit(experiment, images, store=folder / "model.safetensors"):
        metrics.append(epoch.metrics)
        if epoch.number == 1:
            epoch.save(folder / "epoch1.pt")
    if experiment.parallel.workers > 1:
        dist.barrier()  # the first worker writes the file that all of them read
    *_, last = fit(experiment, images, resume=folder / "epoch1.pt")
    return {"metrics": metrics, "resumed": last.metrics}


def interrupted(experiment: Experiment, folder: Path, rank: int) -> list[float]:
    """Losses of a trial that ended after its first epoch, and was begun again."""
    from raybench.cluster import trial

    # Only the first worker's clock says that it is time to save.
    trial.CHECKPOINT_EVERY_S = math.inf if rank else 0.0
    job = trial.Job(experiment.to_json(), str(folder / "trial" / "state.pt"), None, 1)
    first = trial.epochs(experiment, job)
    losses = [next(first).metrics["loss"]]
    first.close()
    dist.barrier()
    return losses + [epoch.metrics["loss"] for epoch in trial.epochs(experiment, job)]


def measured(folder: Path, others: Path | None, seed: int) -> dict[str, Any]:
    """All that this process finds out."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    top2 = replace(EXPERIMENT, switch=replace(SWITCH, top_k=2))
    experiment = replace(EXPERIMENT, parallel=Parallel(strategy="expert", workers=workers))
    actual = {
        "top1": gradients(EXPERIMENT, seed),
        "top2": gradients(top2, seed),
        "forced": gradients(EXPERIMENT, seed, forced=True),
        "forced bf16": forced_bf16_bytes(),
        "trained": {
            name: trained(
                with_it,
                seed,
                others / f"{name}.pt" if others else None,
                folder / f"{name}.pt",
            )
            for name, with_it in OPTIMIZERS.items()
        },
        "fit": fitted(experiment, folder),
    }
    if workers > 1:
        actual["interrupted"] = interrupted(experiment, folder, rank=seed)
    return actual


def worker(rank: int, folder: Path, others: Path) -> dict[str, Any]:
    """The findings of one of the workers."""
    # Other first weights in each worker: those of the first one have to win.
    return measured(folder, others, seed=rank)
