"""Sweeps on a cluster whose nodes share no disk, and die and join: failures, losses and costs.

A node is a set of Linux namespaces on this machine (`machines`); each part makes its own. The parts
`autoscaled`, `s3` and `upload` need no namespaces.
"""

from __future__ import annotations

import sys
import time

from raybench.arguments.nearest import nearest
from raybench.bench import machines
from raybench.bench.cluster_parts import (
    autoscaled,
    churn,
    efficiency,
    joins,
    large_states,
    lost_nodes,
    s3_lost,
    upload,
    works,
)

IN_NAMESPACES = {
    "works": works,
    "losses": lost_nodes,
    "joins": joins,
    "churn": churn,
    "large": large_states,
    "efficiency": efficiency,
}
PARTS = {**IN_NAMESPACES, "autoscaled": autoscaled, "s3": s3_lost, "upload": upload}
SUMMED = ("lost", "wrong")  # summed over the parts that count them
claims = {name: target for part in PARTS.values() for name, target in part.claims.items()}


def measure(part: str | None = None) -> dict[str, float | list[str]]:
    """The figures of one part, or of all; `skipped` says why parts with namespaces did not run.

    Raises:
        ValueError: there is no such part.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"no part {part!r}; {nearest(part, list(PARTS))}")
    figures: dict[str, float | list[str]] = {}
    summed = dict.fromkeys(SUMMED, 0.0)
    reason = machines.why_not()
    for name in PARTS if part is None else [part]:
        if reason and name in IN_NAMESPACES:
            figures["skipped"] = [reason]
            continue
        began = time.monotonic()
        of_part = PARTS[name].measure()
        for key in SUMMED:
            summed[key] += of_part.get(key, 0.0)
            if key in of_part:
                of_part[key] = summed[key]
        figures |= of_part
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return figures
