"""The choice of each layer's bits, by their cost in bytes and in loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raybench.techniques.layers.host_numbers import read
from raybench.techniques.layers.learned_step import fit_weight_steps, rounded_weight

BITS = range(2, 9)


@torch.no_grad()
def sensitivity(
    weight: Tensor, squared_gradient: Tensor | float, bits: int, stacked: int = 0
) -> float:
    """Increase of the loss, up to a constant factor, if the weight has this many bits.

    This is the second-order term with the diagonal of the empirical Fisher in place of the
    Hessian's: the sum of E[g²] (w - Q(w))², with g² of whole batches. Dong et al. 2019, "HAWQ-V2",
    use the Hessian's trace instead; Zandonati et al. 2022, "FIT", the Fisher's.
    """
    error = (
        weight - rounded_weight(weight, fit_weight_steps(weight, bits, stacked), bits)
    ).square_()
    return read((error.double() * squared_gradient).sum())


def choose(sizes: list[int], costs: list[dict[int, float]], budget: int) -> list[int]:
    """Bits for each layer that minimize the total cost while sizes * bits fit into `budget` bits.

    This is an exact knapsack with one choice per layer. Layer by layer it keeps the partial sums
    that no other sum beats in both size and cost. There are few of them, because the sizes of
    layers are multiples of one another.

    Raises:
        ValueError: the fewest bits of every layer exceed the budget.
    """
    least = sum(size * min(cost) for size, cost in zip(sizes, costs, strict=True))
    if least > budget:
        raise ValueError(f"{least} bits are the fewest, but the budget has {budget}")
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
    chosen, place = [], len(used) - 1  # the last is the largest, so it has the least cost
    for previous, bits in reversed(came_from):
        chosen.append(int(bits[place]))
        place = int(previous[place])
    return chosen[::-1]
