"""How many bits each layer gets: what they cost in bytes, and what in loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raybench.techniques.layers.learned_step import fit_weight_steps, rounded_weight

BITS = range(2, 9)


@torch.no_grad()
def sensitivity(
    weight: Tensor, squared_gradient: Tensor | float, bits: int, stacked: int = 0
) -> float:
    """Rise of the loss, up to a factor, when the weight has so many bits.

    The second-order term, with the empirical Fisher's diagonal for the Hessian's: the sum of
    E[g²] (w - Q(w))², g² being of whole batches (Dong et al. 2019, "HAWQ-V2", has the Hessian's
    trace in its place; Zandonati et al. 2022, "FIT", the Fisher's).
    """
    error = (
        weight - rounded_weight(weight, fit_weight_steps(weight, bits, stacked), bits)
    ).square_()
    return float((error.double() * squared_gradient).sum())


def choose(sizes: list[int], costs: list[dict[int, float]], budget: int) -> list[int]:
    """Bits for each layer: the least sum of costs of those whose sizes * bits fit `budget` bits.

    A knapsack with one choice a layer, exact: layer by layer the sums that no other beats in both
    size and cost are kept. They are as few as there are sizes, and those of layers are multiples
    of one another.

    Raises:
        ValueError: the fewest bits of every layer exceed the budget.
    """
    least = sum(size * min(cost) for size, cost in zip(sizes, costs, strict=True))
    if least > budget:
        raise ValueError(f"{least} bits are the fewest, the budget has {budget}")
    used, lost = np.zeros(1, dtype=np.int64), np.zeros(1)
    came_from: list[tuple[np.ndarray, np.ndarray]] = []
    for size, cost in zip(sizes, costs, strict=True):
        widths = np.array(sorted(cost))
        all_used = (used[:, None] + size * widths).ravel()
        all_lost = (lost[:, None] + np.array([cost[int(bits)] for bits in widths])).ravel()
        order = np.lexsort((all_lost, all_used))
        order = order[all_used[order] <= budget]
        sums = all_lost[order]
        better = np.r_[True, sums[1:] < np.minimum.accumulate(sums)[:-1]]
        kept = order[better]
        used, lost = all_used[kept], all_lost[kept]
        came_from.append((kept // len(widths), widths[kept % len(widths)]))
    chosen, place = [], len(used) - 1  # the last is the largest, and so the cheapest
    for previous, bits in reversed(came_from):
        chosen.append(int(bits[place]))
        place = int(previous[place])
    return chosen[::-1]
