"""Throughput per slot of one-worker trials: four nodes over one.

The trials wait instead of computing, so that the few processors of the real machine do not limit
four nodes. They store models and save states of ResNet-20's size, which the nodes send to the head.
So the bench measures this transfer and the engine's overhead.
"""

from __future__ import annotations

from statistics import mean, median

from raybench.bench.cluster_parts import waiting_space
from raybench.bench.cluster_parts.driven import Driven
from raybench.bench.machines import Machines
from raybench.results.rows import Row

ROUNDS = 3
EACH = 8  # trials per slot
NODES = 4
ENDS_S = 300.0
claims = {"nodes_efficiency": "reach 0.95"}


def measure() -> dict[str, float]:
    """The ratio of trials per minute and slot; medians of rounds on the same cluster."""
    rates: dict[int, list[float]] = {1: [], NODES: []}
    with Machines() as cluster:
        cluster.head(cpus=0)
        for nodes in rates:
            while len(cluster.nodes) < nodes:
                cluster.node(cpus=1)
            cluster.ready()
            for number in range(ROUNDS):
                rates[nodes].append(_rate(cluster, nodes, seed=10 * nodes + number))
    ratios = [four / one for one, four in zip(*rates.values(), strict=True)]
    return {
        "nodes_efficiency": median(ratios),
        "nodes_efficiency_min": min(ratios),
        "nodes_efficiency_max": max(ratios),
        "trials_per_min_1": median(rates[1]),
        "trials_per_min_slot_4": median(rates[NODES]),
        "rounds": ROUNDS,
    }


def _rate(cluster: Machines, slots: int, seed: int) -> float:
    """Trials per minute and slot; for each node from the end of its first trial."""
    trials = slots * (EACH + 1)
    driven = Driven(cluster, waiting_space, trials, "--keep", "all", "--seed", str(seed))
    if driven.wait(ENDS_S) != 0:
        raise RuntimeError(f"the sweep did not end: {driven.log[-500:]}")
    rows: dict[int, Row] = {}
    ends: dict[str, list[float]] = {}
    for kind, when, content in driven.timed_records():
        if kind == "trial":
            row = rows.setdefault(content["number"], {})
            row.update(content)
            if content.get("status") == "COMPLETE":
                ends.setdefault(row["host"], []).append(when)
    if len(ends) != slots:
        raise RuntimeError(f"only {len(ends)} of {slots} nodes have run trials")
    rates = [60 * (len(of_node) - 1) / (of_node[-1] - of_node[0]) for of_node in ends.values()]
    return mean(rates)
