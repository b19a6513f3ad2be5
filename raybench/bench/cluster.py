"""A cluster whose nodes share no disk, die and join: what works, what is lost, what does it cost?

Every node is a set of Linux namespaces on this machine (`machines`); each part makes its own.
"""

from __future__ import annotations

import sys
import time

from raybench.arguments.nearest import nearest
from raybench.bench import machines
from raybench.bench.cluster_parts import churn, efficiency, large_states, lost_nodes, works

PARTS = {
    "works": works,
    "losses": lost_nodes,
    "churn": churn,
    "large": large_states,
    "efficiency": efficiency,
}
SUMMED = ("lost", "wrong")  # counted in several parts
claims = {name: target for part in PARTS.values() for name, target in part.claims.items()}


def measure(part: str | None = None) -> dict[str, float | list[str]]:
    """The figures of one part, or of all; where no namespaces can be made, the reason.

    Raises:
        ValueError: there is no such part.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"no part {part!r}; {nearest(part, list(PARTS))}")
    if reason := machines.why_not():
        return {"skipped": [reason]}
    figures: dict[str, float | list[str]] = {}
    summed = dict.fromkeys(SUMMED, 0.0)
    for name in PARTS if part is None else [part]:
        began = time.monotonic()
        of_part = PARTS[name].measure()
        for key in SUMMED:
            summed[key] += of_part.get(key, 0.0)
            if key in of_part:
                of_part[key] = summed[key]
        figures |= of_part
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return figures
