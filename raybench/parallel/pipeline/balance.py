"""Balance: the cost of every block of a model, and where to cut the model into stages.

A pipeline is as fast as its slowest stage. Costs are measured at the chunk size of the run, forward
and backward: a cut chosen at batch 8 gave stages of 66 and 34 % at batch 64 (VGG-11).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from raybench.hardware import gpu


@dataclass(frozen=True)
class Costs:
    """Seconds that each block takes for one chunk."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def blocks(self) -> list[float]:
        """Seconds of each block, forward and backward together."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


def measure(
    blocks: Sequence[nn.Module],
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    repetitions: int = 5,
) -> Costs:
    """Times every block of a model on one chunk of images `x`, as a stage runs it.

    Takes the minimum of `repetitions` after an untimed one, on this process's threads, under
    autocast to `dtype`. It times copies of the blocks, so batch norms do not see these chunks.
    """
    blocks = [copy.deepcopy(block).train() for block in blocks]
    forward = [[0.0] * len(blocks) for _ in range(repetitions + 1)]
    backward = [[0.0] * len(blocks) for _ in range(repetitions + 1)]
    for ahead, behind in zip(forward, backward, strict=True):
        inputs, outputs = [x], []
        for number, block in enumerate(blocks):
            began = _now(x.device)
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                outputs.append(block(inputs[-1]))
            ahead[number] = _now(x.device) - began
            inputs.append(outputs[-1].detach().requires_grad_())
        gradient = torch.ones_like(outputs[-1])
        for number in reversed(range(len(blocks))):
            began = _now(x.device)
            if outputs[number].requires_grad:
                torch.autograd.backward(outputs[number], gradient)
            behind[number] = _now(x.device) - began
            leaf = inputs[number]
            if leaf.grad is not None:
                gradient = leaf.grad
    return Costs(
        tuple(min(seconds) for seconds in zip(*forward[1:], strict=True)),
        tuple(min(seconds) for seconds in zip(*backward[1:], strict=True)),
    )


def _now(device: torch.device) -> float:
    gpu.synchronize(device)
    return time.perf_counter()


def partition(costs: Sequence[float], stages: int) -> list[int]:
    """The first block of every stage but the first, chosen so that the slowest stage costs least.

    Among equally good cuts it prefers the smallest sum of squared costs, then the earliest cuts.

    Raises:
        ValueError: more stages than blocks.
    """
    check(len(costs), stages)
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    def stage(first: int, end: int) -> float:
        """Cost of a stage of the blocks from `first` to before `end`."""
        return sums[end] - sums[first]

    limit, _ = _best(len(costs), stages, lambda first, end, sofar: max(sofar, stage(first, end)))

    def squared(first: int, end: int, sofar: float) -> float:
        cost = stage(first, end)
        return sofar + cost**2 if cost <= limit else math.inf

    return list(_best(len(costs), stages, squared)[1])


def _best(
    blocks: int, stages: int, total: Callable[[int, int, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The smallest total over all ways to cut, and the earliest cuts that reach it.

    `total(first, end, sofar)` adds a stage to the total of those before it.
    """
    impossible: tuple[float, tuple[int, ...]] = (math.inf, ())
    best = [(0.0, impossible[1])] + [impossible] * blocks
    for number in range(1, stages + 1):
        best = [
            min(
                (
                    (total(first, end, best[first][0]), (*best[first][1], first))
                    for first in range(number - 1, end)
                ),
                default=impossible,
            )
            for end in range(blocks + 1)
        ]
    value, (_, *cuts) = best[blocks]
    return value, tuple(cuts)


def check(blocks: int, stages: int) -> None:
    """Raises ValueError if there are more stages than blocks."""
    if not 1 <= stages <= blocks:
        raise ValueError(
            f"stages is {stages}, but the model has {blocks} blocks: use 1 to {blocks} stages"
        )


def from_text(text: str, blocks: int, stages: int) -> list[int]:
    """Cuts given by hand: "3,7" starts stages at blocks 3 and 7, counted from 0.

    Raises:
        ValueError: they do not fit the model or the number of stages.
    """
    check(blocks, stages)
    advice = f"the model has blocks 0 to {blocks - 1}, and {stages} stages need {stages - 1} cuts"
    try:
        cuts = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise ValueError(f"cuts {text!r} are not numbers separated by commas: {advice}") from error
    if len(cuts) != stages - 1:
        raise ValueError(f"cuts {text!r} are {len(cuts)}: {advice}")
    for cut in cuts:
        if not 0 < cut < blocks:
            raise ValueError(f"cut {cut} is out of range: {advice}, from 1 to {blocks - 1}")
    for cut, following in pairwise(cuts):
        if cut >= following:
            raise ValueError(f"cuts {text!r} do not increase: {following} comes after {cut}")
    return cuts


def bounds(cuts: Sequence[int], blocks: int) -> list[tuple[int, int]]:
    """First block and end of each stage."""
    return list(pairwise([0, *cuts, blocks]))


def stage_costs(costs: Sequence[float], cuts: Sequence[int]) -> list[float]:
    """The total cost of each stage."""
    return [sum(costs[first:end]) for first, end in bounds(cuts, len(costs))]


def imbalance(costs: Sequence[float]) -> float:
    """The slowest stage's cost over the mean; 1 is perfect balance."""
    return max(costs) * len(costs) / sum(costs)
