"""Experiment: everything that decides one training run, except the machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from raybench.experiment import plain
from raybench.experiment.pipeline import Pipeline
from raybench.experiment.plain import nearest
from raybench.techniques import Technique
from raybench.techniques.distill import Distill
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch

__all__ = ["Experiment", "Parallel", "Pipeline", "Recipe", "from_json", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is trained: optimizer, learning-rate curve, batch, augmentation, precision."""

    epochs: int = 10
    batch: int = 128
    """Images a step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Applied to weights of convolutions and linear layers; never to norms and biases."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate's way from `lr` to 0, after the warm-up."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises from 0."""
    label_smoothing: float = 0.0
    crop: int = 4
    """Largest shift of the random crop, in pixels; 0 is no crop."""
    flip: bool = True
    """Horizontal flips: each image once each way in every two epochs (airbench's scheme)."""
    mixup: float = 0.0
    """Images and labels are mixed in pairs, the share drawn from Beta(mixup, mixup): the `alpha`
    of Zhang et al. 2018. 0 is off."""
    cutout: int = 0
    """Side of a square in each image that is set to the mean, in pixels (DeVries & Taylor 2017).
    0 is off."""
    renew_norms: int = 0
    """Training batches over which batch norms take means and variances anew, before they are used.
    What was just pruned or rounded, or trained for few steps, needs it; 0 keeps running ones."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast, fp16 with a scaled loss and on GPUs alone; `auto` takes bf16
    where the processor has it. Evaluation is in fp32."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: it must be above 0")
        for name in ("momentum", "weight_decay", "crop", "mixup", "cutout", "renew_norms"):
            if not getattr(self, name) >= 0:  # `not >=`, so that NaN is refused as well
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")
        if math.isinf(self.mixup):
            raise ValueError("mixup is inf: the alpha of a Beta distribution is finite")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it lies in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How one step is spread over workers."""

    workers: int = 1
    strategy: Literal[
        "ddp",
        "bf16_gradients",
        "powersgd",
        "zero1",
        "zero2",
        "zero3",
        "zero3_offload",
        "expert",
    ] = "ddp"
    """ddp: every worker holds the model; bf16_gradients and powersgd send less of its gradients.
    zero1: the optimizer's state lies on the workers in equal parts; zero2: the gradients too;
    zero3: the parameters too; zero3_offload: those parts in the host's memory. expert: the experts
    of `switch` lie on the workers in equal parts and tokens travel to them; all else is ddp."""
    checkpointing: bool = False
    """Blocks keep their inputs alone, and are computed once more in the backward pass."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run. Hashable; `key()` is the same in every process and version."""

    family: str
    """Module under `trainers/`, or the dotted name of a trainer of your own."""
    model: str
    data: str = "digits"
    """digits, cifar10, cifar100, beans, or a folder of images."""
    image_size: int = 32
    subset: float = 1.0
    """Share of the training images that is used."""
    seed: int = 0
    """Decides the split, the first weights, the order and the augmentation."""
    recipe: Recipe = Recipe()
    parallel: Parallel = Parallel()
    pipeline: Pipeline = Pipeline()  # noqa: RUF009  frozen, as those above

    start_from: str = ""
    """Where the first weights come from. Empty: fresh ones; a trained model, as a file that
    `--store` or `--keep` left, or as `RESULTS#TRIAL`; `timm:hub` downloads pretrained ones,
    `timm:FILE` has them in a file."""

    # The techniques. They are applied in the order in which they stand here.
    switch: Switch | None = None
    monarch: Monarch | None = None
    low_rank: LowRank | None = None
    prune_channels: PruneChannels | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None
    distill: Distill | None = None

    def __post_init__(self) -> None:
        if not 0 < self.subset <= 1:
            raise ValueError(f"subset is {self.subset}: a share in (0, 1]")
        if self.image_size < 8:
            raise ValueError(f"image_size is {self.image_size}: 8 pixels or more")
        if self.recipe.cutout >= self.image_size:
            raise ValueError(
                f"recipe.cutout is {self.recipe.cutout}, and images have {self.image_size} pixels "
                "a side: take a smaller square, such as half of them"
            )
        if self.recipe.batch % self.parallel.workers:
            raise ValueError(
                f"recipe.batch {self.recipe.batch} does not divide over "
                f"{self.parallel.workers} workers"
            )
        self.pipeline.check_batch(self.recipe.batch)
        if self.parallel.strategy == "expert":
            experts = self.switch.experts if self.switch else 0
            if not experts:
                raise ValueError(
                    "parallel.strategy is 'expert', but the model has no experts: set "
                    "switch.experts, or take 'ddp'"
                )
            if experts % self.parallel.workers:
                raise ValueError(
                    f"switch.experts {experts} does not divide over {self.parallel.workers} "
                    f"workers, as parallel.strategy 'expert' wants it: take a multiple, or 'ddp'"
                )

    def techniques(self) -> list[tuple[str, Technique]]:
        """The active techniques with their field names, in order of application."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(n, value) for n, value in values if isinstance(value, Technique) and value.active]

    def key(self) -> str:
        """16 hex digits that name this experiment.

        Fields at their defaults do not count, so a new field with a default changes no key.
        """
        said = json.dumps(plain.without_defaults(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(plain.as_dict(self))


def from_json(text: str) -> Experiment:
    """The Experiment that `to_json` wrote. Raises ValueError that names a wrong field."""
    experiment = plain.build(Experiment, json.loads(text), "Experiment")
    assert isinstance(experiment, Experiment)
    return experiment


def checked(experiment: Experiment) -> Experiment:
    """The same experiment with every value's type checked against its field, as `from_json` does.

    Dataclasses do not check types themselves: `lr="0.1"` would fail only in the optimizer.
    """
    return plain.build(Experiment, asdict(experiment), "Experiment")


def compatible(experiment: Experiment) -> Experiment:
    """The same experiment. Raises ValueError where two parts of it cannot act together.

    The class itself lets them stand side by side: a command line's defaults hold all of them.
    """
    strategy, techniques = experiment.parallel.strategy, experiment.techniques()
    names = [name for name, _ in techniques]
    experiment.pipeline.check_with(names, experiment.parallel.workers)
    changing = [name for name in names if name != "distill"]
    if strategy.startswith("zero") and changing:
        raise ValueError(
            f"parallel.strategy {strategy!r} spreads the layers that {changing[0]} changes "
            "over the workers; take 'ddp'"
        )
    if experiment.prune and experiment.prune_channels and experiment.prune_channels.ratio:
        # The cut waits for an epoch's start; masks made before it would not fit.
        cut = math.ceil(experiment.prune_channels.at * experiment.recipe.epochs)
        if 0 < cut < experiment.recipe.epochs and experiment.prune.begin <= (
            share := cut / experiment.recipe.epochs
        ):
            raise ValueError(
                f"prune.begin {experiment.prune.begin} is not after {share:.4g}, where "
                "prune_channels cuts; take a later begin, or an earlier prune_channels.at"
            )
    monarch, low_rank = experiment.monarch, experiment.low_rank
    if not monarch or not monarch.blocks:
        return experiment
    if low_rank and low_rank.blocks:
        raise ValueError("monarch and low_rank both replace the linear layers; take one of them")
    for name, has_no in (("prune", "masks"), ("quantize", "steps")):
        if monarch.mode != "from_scratch" and getattr(experiment, name):
            raise ValueError(
                f"{name} has no {has_no} for the layers that monarch.mode {monarch.mode} makes in "
                "the midst of training; take from_scratch"
            )
    return experiment


def elastic_counts(experiment: Experiment, least: int, most: int) -> list[int]:
    """The numbers of workers, of a range, over which the experiment divides.

    Raises:
        ValueError: it divides over none of them.
    """
    if not 1 <= least <= most:
        raise ValueError(f"--workers {least}:{most}: from 1 or more to as many or more")
    counts = []
    for workers in range(least, most + 1):
        with contextlib.suppress(ValueError):
            replace(experiment, parallel=replace(experiment.parallel, workers=workers))
            counts.append(workers)
    if not counts:
        raise ValueError(
            f"recipe.batch {experiment.recipe.batch} divides over no number of workers from "
            f"{least} to {most}; take another batch, or a wider range"
        )
    return counts


def columns() -> dict[str, type]:
    """Column name -> type of an Experiment in a table: `model`, `recipe.lr`, `prune.power`, …"""
    return dict(plain.column_types(Experiment))


def technique_types() -> dict[str, type[Technique]]:
    """Field name -> class of every technique that an Experiment can have, in order."""
    types = {name: plain.dataclass_in(hint) for name, hint in plain.hints_of(Experiment).items()}
    return {name: kind for name, kind in types.items() if kind and issubclass(kind, Technique)}


def flatten(experiment: Experiment) -> dict[str, Any]:
    """The Experiment as one row of `columns()`; None where a technique is off."""
    whole = plain.as_dict(experiment)
    row: dict[str, Any] = {}
    for name in columns():
        value: Any = whole
        for part in name.split("."):
            value = None if value is None else value[part]
        row[name] = value
    return row
