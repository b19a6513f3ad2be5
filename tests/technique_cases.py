"""A neutral and an active setting of every technique."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Case:
    """A field of Experiment, a setting at which the technique does nothing, and one that acts; the
    family that reports its columns, and a model that it is for. A field with several modes has a
    case for each."""

    field: str
    neutral: Technique
    active: Technique
    family: str
    model: str = "resnet20"
    adds_parameters: bool = False  # at the end of training, to a plain model's
    mode: str = ""

    @property
    def name(self) -> str:
        return f"{self.field}-{self.mode}" if self.mode else self.field


TEACHER = Path(tempfile.gettempdir()) / f"raybench-teacher-{os.getpid()}.safetensors"


TABLE = [
    Case(
        "prune",
        neutral=Prune(final_sparsity=0.0),
        active=Prune(final_sparsity=0.8, begin=0.1, end=0.7, frequency=2),
        family="pruning",
    ),
    Case(
        "prune_channels",
        neutral=PruneChannels(ratio=0.0, at=0.5),
        active=PruneChannels(ratio=0.5, at=0.5),
        family="pruning",
        model="resnet20_b",
    ),
    Case(
        "quantize",
        neutral=Quantize(bits=0),
        active=Quantize(bits=4, activation_bits=4, begin=0.3),
        family="pruning",
        adds_parameters=True,
    ),
    Case(
        "quantize",
        mode="after_training",
        neutral=Quantize(bits=0, begin=1.0),
        active=Quantize(bits=3, activation_bits=32, begin=1.0),
        family="pruning",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "quantize",
        mode="budget",
        neutral=Quantize(bits=0, budget_bytes=10_000),
        active=Quantize(budget_bytes=10_000, begin=0.6),
        family="pruning",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "switch",
        neutral=Switch(experts=0),
        active=Switch(experts=4, blocks="all"),
        family="switch_vit",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "monarch",
        neutral=Monarch(blocks=0),
        active=Monarch(blocks=4),
        family="monarch",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "monarch",
        mode="dense_to_sparse",
        neutral=Monarch(blocks=0, mode="dense_to_sparse", switch_at=0.5),
        active=Monarch(blocks=4, mode="dense_to_sparse", switch_at=0.5),
        family="monarch",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "monarch",
        mode="sparse_to_dense",
        neutral=Monarch(blocks=0, mode="sparse_to_dense", switch_at=0.5),
        active=Monarch(blocks=4, mode="sparse_to_dense", switch_at=0.5),
        family="monarch",
        model="vit32x2",
    ),
    Case(
        "low_rank",
        neutral=LowRank(blocks=0),
        active=LowRank(blocks=4),
        family="monarch",
        model="vit32x2",
        adds_parameters=True,
    ),
    Case(
        "distill",
        neutral=Distill(teacher=""),
        active=Distill(teacher=str(TEACHER), temperature=2.0, weight=0.5),
        family="pruning",
    ),
    Case(
        "ema",
        neutral=Ema(decay=0.0),
        active=Ema(decay=0.9),
        family="pruning",
    ),
    Case(
        "progressive",
        neutral=Progressive(first=1.0),
        active=Progressive(first=0.5, until=0.6),
        family="speed",
    ),
    Case(
        "muon",
        neutral=Muon(lr=0.0),
        active=Muon(lr=0.02),
        family="speed",
    ),
]


STEPS = 6  # of two epochs
