"""Experiment: everything that determines one training run, except the machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from raybench.experiment import plain
from raybench.experiment.parallel import Parallel
from raybench.experiment.pipeline import Pipeline
from raybench.experiment.recipe import Recipe
from raybench.techniques import Technique
from raybench.techniques.distill import Distill
from raybench.techniques.ema import Ema
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.muon import Muon
from raybench.techniques.progressive import Progressive
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run. Hashable; `key()` is stable across processes and versions."""

    family: str
    """Module under `trainers/`, or the dotted name of a trainer of your own."""
    model: str
    """A model of raybench, torchvision or timm; or your own, `package.module:factory`, which is
    called with classes=… and image_size=… and returns an nn.Module."""
    model_source: str = ""
    """Hash of the files of your own model; the commands fill it in. Empty for named models."""
    data: str = "digits"
    """digits, cifar10, cifar100, beans, or a folder of images."""
    image_size: int = 32
    """Side of an image in pixels."""
    subset: float = 1.0
    """Share of each class's training images to use."""
    seed: int = 0
    """Seed of the first weights, the subset, the order and the augmentation; not of the splits."""
    recipe: Recipe = Recipe()  # noqa: RUF009  frozen, like those below
    parallel: Parallel = Parallel()  # noqa: RUF009
    pipeline: Pipeline = Pipeline()  # noqa: RUF009

    start_from: str = ""
    """Source of the first weights. Empty: fresh ones. A trained model: a file written by `--store`
    or `--keep`, or `RESULTS#TRIAL`. `timm:hub` downloads pretrained weights, `timm:FILE` reads them
    from a file."""
    latency: bool = False
    """Whether the last epoch measures the latency of the stored model in ONNX Runtime, and the
    accuracy of its graph."""

    # The techniques, in the order in which they are applied.
    switch: Switch | None = None
    monarch: Monarch | None = None
    low_rank: LowRank | None = None
    prune_channels: PruneChannels | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None
    distill: Distill | None = None
    ema: Ema | None = None
    progressive: Progressive | None = None
    muon: Muon | None = None

    def __post_init__(self) -> None:
        if not 0 < self.subset <= 1:
            raise ValueError(f"subset is {self.subset}: a share in (0, 1]")
        # torch accepts 64 bits, and a search adds its own seed. `checked` refuses other types.
        if isinstance(self.seed, int) and not -(2**62) <= self.seed < 2**62:
            raise ValueError(f"seed is {self.seed}: a whole number of at most 62 bits")
        if self.image_size < 8:
            raise ValueError(f"image_size is {self.image_size}: 8 pixels or more")
        if self.recipe.cutout >= self.image_size:
            raise ValueError(
                f"recipe.cutout is {self.recipe.cutout}, but images have only {self.image_size} "
                "pixels a side: use a smaller square, such as half of that"
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
                    "switch.experts, or use 'ddp'"
                )
            if experts % self.parallel.workers:
                raise ValueError(
                    f"switch.experts {experts} does not divide over {self.parallel.workers} "
                    f"workers, which parallel.strategy 'expert' needs: use a multiple, or 'ddp'"
                )

    def techniques(self) -> list[tuple[str, Technique]]:
        """The active techniques with their field names, in order of application."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(n, value) for n, value in values if isinstance(value, Technique) and value.active]

    def key(self) -> str:
        """16 hex digits that name this experiment.

        Fields with default values are left out, so that a new field changes no existing key.
        """
        text = json.dumps(plain.without_defaults(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(plain.as_dict(self))


def from_json(text: str) -> Experiment:
    """The inverse of `to_json`. Raises ValueError that names the wrong field."""
    experiment = plain.build(Experiment, json.loads(text), "Experiment")
    assert isinstance(experiment, Experiment)
    return experiment


def checked(experiment: Experiment) -> Experiment:
    """The same experiment with every value's type checked against its field, as `from_json` does.

    Dataclasses do not check types themselves: `lr="0.1"` would fail only in the optimizer.
    """
    return plain.build(Experiment, asdict(experiment), "Experiment")


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
