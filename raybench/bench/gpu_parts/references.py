"""The five references' tables: settings and figures, in runs that fit into a part's time.

    switch_vit   batch 256, patch 4, width 300             12 of 350 epochs
    strategies   ViT-B at 224 pixels, fresh weights         3 epochs, as theirs
    monarch      ViT-S, ViT-B, Mixer-B at 224 pixels        2 epochs of digits: costs, no accuracy
    pruning      ResNet-20 and -44                         12 epochs; theirs are not given
    pipeline     batch 512, lr 0.2, momentum 0.9             3 of 100 epochs, one stage

The most important come first, because a part stops when its time is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from raybench.experiment import Experiment, Parallel, Pipeline
from raybench.reports.tables.monarch import REFERENCE as MONARCH
from raybench.reports.tables.pipeline import REFERENCE as PIPELINE
from raybench.reports.tables.strategies import PLUGINS
from raybench.reports.tables.strategies import REFERENCE as STRATEGIES
from raybench.reports.tables.switch_vit import REFERENCE as SWITCH_VIT
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from trainers import monarch, pipeline, pruning, strategies, switch_vit


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One row of a reference's table, as an experiment."""

    subject: str
    side: str
    """Speed-ups and sizes are relative to the first side of a subject."""
    experiment: Experiment
    epochs: int
    seconds: float
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """The reference's values, in the units of raybench's columns."""


def _switch_vit() -> list[Reference]:
    recipe = replace(switch_vit.base.recipe, batch=256)
    rows = []
    for experts, (parameters, highest, _, seconds, inference) in SWITCH_VIT.items():
        rows.append(
            Reference(
                subject="switch_vit vit300",
                side=f"experts_{experts}" if experts else "dense",
                experiment=replace(
                    switch_vit.base,
                    recipe=recipe,
                    switch=Switch(experts=experts) if experts else None,
                ),
                epochs=12,
                seconds=70 if experts == 0 else 130,  # 465 million parameters are stored
                figures={
                    "accuracy": float(highest.split()[0]) / 100,
                    "parameters": parameters,
                    "s_per_epoch": seconds,
                    "inference_s": inference,
                    "speed_up": SWITCH_VIT[0][3] / seconds,
                },
            )
        )
    return rows


Way = tuple[str, Literal["ddp", "zero1", "zero3_offload"], Literal["fp32", "fp16"]]
WAYS: tuple[Way, ...] = (
    ("ddp", "ddp", "fp32"),
    ("ddp_fp16", "ddp", "fp16"),
    ("zero1", "zero1", "fp32"),
    ("zero3_offload", "zero3_offload", "fp32"),
)


def _strategies() -> list[Reference]:
    rows = []
    for batch in (8, 32):
        for side, strategy, precision in WAYS:
            plugin = PLUGINS.get(strategy, "torch_ddp_fp16" if precision == "fp16" else "torch_ddp")
            rate, memory_gb = STRATEGIES[plugin, batch]
            # Compiling takes longer than the run.
            recipe = replace(strategies.base.recipe, batch=batch, precision=precision)
            rows.append(
                Reference(
                    subject=f"strategies batch {batch}",
                    side=side,
                    experiment=replace(
                        strategies.base,
                        recipe=replace(recipe, compile="off"),
                        parallel=Parallel(workers=1, strategy=strategy),
                    ),
                    epochs=3,
                    seconds=40,
                    figures={"images_per_s": rate, "peak_memory_bytes": memory_gb * 1e9},
                )
            )
    return rows


def _monarch() -> list[Reference]:
    rows = []
    for (model, structured), (accuracy, speed_up, parameters, flops) in MONARCH.items():
        published: dict[str, float | str] = {
            "accuracy": accuracy / 100,
            "parameters": 1e6 * float(parameters[:-1]),
            "flops": 2e9 * float(flops[:-1]),  # theirs are multiply-adds
        }
        if speed_up is not None:
            published["speed_up"] = speed_up
        rows.append(
            Reference(
                subject=f"monarch {model}",
                side="monarch_4" if structured else "dense",
                experiment=replace(
                    monarch.base,
                    model=model,
                    image_size=224,
                    recipe=replace(monarch.base.recipe, crop=0),
                    monarch=Monarch(blocks=4) if structured else None,
                ),
                epochs=2,
                seconds=70,
                figures=published,
            )
        )
    return rows


def _pruning() -> list[Reference]:
    rows = []
    sparse, int8 = Prune(final_sparsity=0.6), Quantize(bits=8, begin=0.5)
    for model in ("resnet20", "resnet44"):
        plain = replace(pruning.base, model=model)
        plain = replace(plain, recipe=replace(plain.recipe, precision="fp32"))
        half = replace(plain, recipe=replace(plain.recipe, precision="fp16"))
        sides: dict[str, tuple[Experiment, dict[str, float | str]]] = {
            "dense": (plain, {}),
            "fp16": (half, {"speed_up": 1.2}),
            "sparse_60": (replace(plain, prune=sparse), {}),
            "super_60": (replace(plain, prune=sparse, quantize=int8), {"times_smaller": 1.8}),
        }
        for side, (experiment, published) in sides.items():
            rows.append(
                Reference(
                    subject=f"pruning {model}",
                    side=side,
                    experiment=experiment,
                    epochs=12,
                    seconds=70,
                    figures=published,
                )
            )
    return rows


def _pipeline() -> list[Reference]:
    rows = []
    for (model, chunks), (accuracy, seconds) in PIPELINE.items():
        rows.append(
            Reference(
                subject=f"pipeline {model}",
                side=f"chunks_{chunks}",
                experiment=replace(
                    pipeline.base, model=model, pipeline=Pipeline(stages=1, chunks=chunks)
                ),
                epochs=3,
                seconds=40,
                figures={
                    "accuracy": accuracy / 100,
                    "s_per_batch": seconds,
                    "speed_up": PIPELINE[model, 1][1] / seconds,
                },
            )
        )
    return rows


LISTED = [*_switch_vit(), *_strategies(), *_monarch(), *_pruning(), *_pipeline()]
