"""What each part measures: its subjects, the most important first.

a  steps       ResNet-20 against the usual script; experts, Monarch, memory, against dense
b  accuracy    ResNet-20 and ResNet-18 to a target, the usual and the speed recipe
c  references  the families' bases and their variants, in shorter runs with decay to the end
d  compare     every technique that fits against the plain model, with the same seeds
e  processes   one and two processes on one GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from raybench.bench.gpu_parts import processes, references, steps, trained
from raybench.bench.gpu_parts.child import Subject
from raybench.bench.gpu_parts.sized import sized
from raybench.experiment import Experiment
from raybench.techniques.ema import Ema
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from trainers import monarch, pruning, speed, switch_vit

SEEDS = (0, 1, 2)


def subjects(part: str, *, small: bool) -> list[Subject]:
    """The subjects of a part; if `small`, each takes seconds on a CPU, to show that it runs.

    Raises:
        ValueError: there is no such part.
    """
    if part not in PARTS:
        raise ValueError(f"--part is {part!r}: use one of {', '.join(PARTS)}")
    return PARTS[part](small)


def _steps(small: bool) -> list[Subject]:
    vit = sized(switch_vit.base, small, recipe=replace(switch_vit.base.recipe, batch=256))
    wide = sized(monarch.base, small)
    if not small:  # digits: a data set of 224 pixels that fits anywhere
        wide = replace(wide, model="vit_base_patch16_224", data="digits", image_size=224)
        wide = replace(wide, recipe=replace(wide.recipe, batch=64, crop=0))
    resnet = sized(pruning.base, small, recipe=replace(pruning.base.recipe, batch=512))
    pairs: dict[str, tuple[Experiment, dict[str, dict[str, Any]]]] = {
        "resnet20": (resnet, {}),
        "switch_64": (vit, {"experts_64": {"switch": Switch(experts=4 if small else 64)}}),
        "monarch_vit_b": (
            wide,
            {
                "monarch_4": {"monarch": Monarch(blocks=4)},
                "low_rank_4": {"low_rank": LowRank(blocks=4)},
            },
        ),
    }
    return [
        Subject(name, partial(steps.against, name, plain, sides, name == "resnet20", small), 90)
        for name, (plain, sides) in pairs.items()
    ]


def _accuracy(small: bool) -> list[Subject]:
    listed = []
    for model, side, base, epochs, seconds in (
        ("resnet18", "speed", speed.base, 10, 60),
        ("resnet20", "speed", speed.base, 16, 60),
        ("resnet20", "plain", speed.plain, 60, 120),
        ("resnet18", "plain", speed.plain, 60, 200),
    ):
        # A GPU needs larger batches than a CPU core to be busy.
        batch = 512 if side == "speed" else base.recipe.batch
        recipe = replace(base.recipe, batch=batch)
        experiment = sized(base, small, epochs, model=model, recipe=recipe)
        run = partial(trained.curve, "b", model, side, experiment)
        listed.append(Subject(f"{model} {side}", run, seconds))
    return listed


def _references(small: bool) -> list[Subject]:
    listed = []
    for one in references.LISTED:
        experiment = sized(one.experiment, small, one.epochs)
        run = partial(trained.curve, "c", one.subject, one.side, experiment)
        listed.append(Subject(f"{one.subject} {one.side}", run, one.seconds))
    return listed


def _compare(small: bool) -> list[Subject]:
    of_model: dict[str, tuple[Experiment, dict[str, dict[str, Any]]]] = {
        "resnet20": (
            pruning.base,
            {
                "plain": {},
                "prune": {"prune": Prune(final_sparsity=0.8)},
                "quantize": {"quantize": Quantize(bits=8, begin=0.5)},
                "ema": {"ema": Ema(decay=0.99)},
            },
        ),
        "vit": (
            replace(switch_vit.base, switch=None),
            {
                "plain": {},
                "switch": {"switch": Switch(experts=8)},
                "monarch": {"monarch": Monarch(blocks=4)},
                "low_rank": {"low_rank": LowRank(blocks=4)},
            },
        ),
    }
    return [
        Subject(
            f"{model} {side} {seed}",
            partial(trained.curve, "d", model, side, sized(base, small, 8, seed=seed, **parts)),
            25,
        )
        for seed in (SEEDS[:1] if small else SEEDS)  # all sides of a seed before the next seed
        for model, (base, sides) in of_model.items()
        for side, parts in sides.items()
    ]


def _processes(small: bool) -> list[Subject]:
    experiment = sized(pruning.base, small, 3)
    return [Subject("resnet20", partial(processes.beside, "resnet20", experiment), 120)]


PARTS: dict[str, Callable[[bool], list[Subject]]] = {
    "a": _steps,
    "b": _accuracy,
    "c": _references,
    "d": _compare,
    "e": _processes,
}
