"""Which parts of an Experiment can be combined: techniques, and the ways to run a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from raybench.experiment.experiment import Experiment, technique_types
from raybench.experiment.parallel import Parallel
from raybench.experiment.plain import hints_of
from raybench.techniques import Apart, Technique

SINGLE_PROCESS = ("pipeline", "checkpointing")
"""Ways to run a step that are not values of `parallel.strategy`."""


def compatible(experiment: Experiment) -> Experiment:
    """The same experiment. Raises ValueError if two of its parts cannot be combined.

    The class itself allows such parts, because the defaults of a command line contain all of them.
    """
    for reason in conflicts(experiment):
        raise ValueError(reason)
    return experiment


def conflicts(experiment: Experiment) -> list[str]:
    """A sentence for every two parts of the experiment that cannot be combined."""
    pipeline, workers = experiment.pipeline, experiment.parallel.workers
    present = parts(experiment)
    reasons = [
        f"{name} and {apart.other} cannot be combined: {apart.reason}"
        for name, technique in experiment.techniques()
        for apart in technique.apart
        if apart.other in present and (apart.when is None or apart.when(experiment))
    ]
    if pipeline.on and workers > 1:
        reasons.append(
            f"{pipeline.stages} pipeline.stages of {pipeline.chunks} pipeline.chunks with "
            f"{workers} parallel.workers: use workers or a pipeline, and set the others to 1"
        )
    return [*reasons, *_beyond_a_stage(experiment)]


def _beyond_a_stage(experiment: Experiment) -> Iterator[str]:
    """A sentence for every technique with a hook that a pipeline stage cannot call."""
    for name, technique in experiment.techniques() if experiment.pipeline.on else ():
        declared = any(apart.other == "pipeline" for apart in technique.apart)
        for hook in () if declared else ("before_training", "optimizer", "penalty"):
            if getattr(type(technique), hook) is not getattr(Technique, hook):
                yield (
                    f"{name} and pipeline cannot be combined: a stage does not call {hook}; use "
                    "pipeline.stages 1 and pipeline.chunks 1"
                )


def parts(experiment: Experiment) -> set[str]:
    """The names of an experiment's active techniques and of the way its steps run."""
    names = {name for name, _ in experiment.techniques()} | {experiment.parallel.strategy}
    if experiment.pipeline.on:
        names.add("pipeline")
    if experiment.parallel.checkpointing:
        names.add("checkpointing")
    return names


def executions() -> list[str]:
    """The names of all ways to run a step: the strategies, and `SINGLE_PROCESS`."""
    return [*get_args(hints_of(Parallel)["strategy"]), *SINGLE_PROCESS]


def declarations(one: str, other: str) -> Iterator[Apart]:
    """The declarations of either part that it cannot be combined with the other."""
    types = technique_types()
    for name, away in ((one, other), (other, one)):
        for apart in types[name].apart if name in types else ():
            if apart.other == away:
                yield apart


def elastic_counts(experiment: Experiment, least: int, most: int) -> list[int]:
    """The numbers of workers in a range over which the experiment can be divided.

    Raises:
        ValueError: there are none.
    """
    if not 1 <= least <= most:
        raise ValueError(f"--workers {least}:{most}: the first is at least 1, the second no less")
    counts = []
    for workers in range(least, most + 1):
        with contextlib.suppress(ValueError):
            replace(experiment, parallel=replace(experiment.parallel, workers=workers))
            counts.append(workers)
    if not counts:
        raise ValueError(
            f"recipe.batch {experiment.recipe.batch} divides over no number of workers from "
            f"{least} to {most}; use another batch, or a wider range"
        )
    return counts
