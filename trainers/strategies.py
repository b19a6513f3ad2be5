"""Parallel strategies: what each costs in memory and gives in samples a second.

Reference: a student project fine-tuned a pretrained ViT on Beans through ColossalAI's plugins, on
one GPU, where ZeRO shards nothing, and whose packages pin a torch of 2024. Here the strategies are
torch's own parts, for any number of workers, and each trains the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from raybench import data
from raybench.experiment import Experiment, Parallel, Recipe
from raybench.models import outline
from raybench.parallel import memory, traffic
from raybench.reports.tables.strategies import table as table  # of the report
from raybench.training.loop import Epoch, fit

base = Experiment(
    family="strategies",
    model="vit_base_patch16_224",
    data="beans",
    image_size=224,
    recipe=Recipe(
        epochs=3, batch=16, optimizer="adamw", lr=1e-4, weight_decay=0.05, crop=4, warmup=0.1
    ),
    parallel=Parallel(workers=2),
)
"""Two workers of 8 images each, as the reference's smaller batch. Weights are fresh ones;
`--start-from timm:hub` downloads pretrained ones, `timm:FILE` has them in a file."""

objectives = {"samples_per_s": "max", "memory_bytes": "min"}

KINDS = (*memory.HELD, "activations_bytes")


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """One run, with what theory says of it beside what was counted."""
    images = data.load(experiment)
    plain = outline(experiment.model, classes=images.classes, image_size=experiment.image_size)
    known = {f"theory_{name}": n for name, n in memory.theory(plain, experiment).items()}
    known["theory_sent_bytes"] = traffic.theory(plain, experiment)
    start = experiment.start_from
    weights = "a trained model's" if start else "fresh"
    if start.startswith("timm:"):
        weights = "pretrained"
    for epoch in fit(experiment, images, resume=resume, store=store):
        counted = {"memory_bytes": sum(epoch.metrics[name] for name in KINDS)}
        told = {n: value for n, value in known.items() if value is not None}
        more = counted | told | {"first_weights": weights}
        yield replace(epoch, metrics=epoch.metrics | more)
