"""Alone: times of whole arms, measured after the last trial, one run at a time, interleaved.

    baseline  prune  quantize │ baseline  prune  quantize │ …      a round has one run of each

Other load on the machine affects all arms of a round alike, so only ratios within a round count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from raybench import data
from raybench.artefact import latency, onnx_graph, served_graph
from raybench.artefact.latency import Times
from raybench.data import Inputs
from raybench.experiment import Experiment
from raybench.training.loop import Diverged
from raybench.training.replicated import Replicated
from raybench.verdict.costs import short

Arm = tuple[str, ...]

STEPS = 2  # in each epoch of a short training run
ROUNDS, LEAST_ROUNDS = 10, 4
BATCHES = (1, 64)
BLOCKS, RUNS = 10, {1: 20, 64: 2}  # runs per block, by batch; their median counts


def trainings(experiments: Mapping[Arm, Experiment], limit_s: float) -> dict[Arm, Times]:
    """Seconds of a short training run of every arm, one figure per round.

    A run has all its epochs with few steps each, so that changes during training count with their
    share. Rounds that would exceed `limit_s` seconds are left out, except the first four.
    """
    began = time.monotonic()
    jobs = {arm: short(one, STEPS, one.recipe.epochs) for arm, one in experiments.items()}
    seconds: dict[Arm, list[float]] = {arm: [] for arm in jobs}
    for number in range(ROUNDS + 1):
        round_began = time.monotonic()
        for arm, experiment in jobs.items():
            took = _training_s(experiment)
            if number:  # the first round chooses oneDNN's kernels
                seconds[arm].append(took)
        took = time.monotonic() - round_began
        if number >= LEAST_ROUNDS and time.monotonic() + took - began > limit_s:
            break
    return {arm: np.array(times) for arm, times in seconds.items()}


def latencies(
    graphs: Mapping[Arm, bytes], inputs: Inputs, batch: int, *, blocks: int = BLOCKS
) -> dict[Arm, Times]:
    """Milliseconds of a served graph for `batch` images on one thread: one median per block."""
    sides: dict[str, Callable[[torch.Tensor], object]] = {}
    for number, graph in enumerate(graphs.values()):
        sides[str(number)] = onnx_graph.Bound(graph)
    images, runs = served_graph.random_images(inputs, batch), RUNS[batch]
    times = latency.measure(sides, images, runs=blocks * runs, warm_up=runs)
    return {
        arm: np.median(times[str(number)].thread_ms.reshape(blocks, runs), axis=1)
        for number, arm in enumerate(graphs)
    }


def log_ratios(times: Mapping[Arm, Times], base: Arm) -> dict[Arm, Times]:
    """Logarithms of every arm's times over the baseline's, round by round."""
    return {arm: np.log(values / times[base]) for arm, values in times.items()}


def _training_s(experiment: Experiment) -> float:
    images = data.load(experiment)
    runner: Any = Replicated(experiment, images)
    total = 0.0
    try:
        for number in range(1, experiment.recipe.epochs + 1):
            total += runner.epoch(number).seconds
    except Diverged:  # the run ended early, so it has no valid time
        return float("nan")
    finally:
        runner.close()
    return total
