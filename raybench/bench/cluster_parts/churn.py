"""Nodes die and join at random during one sweep: is anything lost, duplicated or stuck?"""

from __future__ import annotations

import random
import sys
import time

import pandas as pd

from raybench.bench import steady
from raybench.bench.cluster_parts import waiting_space
from raybench.bench.cluster_parts.driven import Driven, until
from raybench.bench.machines import Machines

KILLS = 30
MOST = 3  # nodes besides the head
MOVES_S = 300.0  # deadline for a sweep to add another row; includes the start of nodes
claims = {"lost": "0", "duplicates": "0", "hangs": "0", "wrong": "0"}


def measure(kills: int = KILLS, seed: int = 0) -> dict[str, float]:
    """Counts of failures over `kills` kills and joins."""
    draw = random.Random(seed)
    counts = dict.fromkeys(("lost", "duplicates", "wrong", "hangs"), 0)
    killed = joined = 0
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(MOST):
            cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, waiting_space, 100_000, "--keep", "none")
        rows: dict[int, pd.Series] = {}
        while killed < kills:
            done = len(rows)
            if not until(lambda: len(driven.finished()) > done, MOVES_S, driven):  # noqa: B023
                counts["hangs"] += 1
                break
            time.sleep(draw.uniform(0.0, 4.0))
            nodes = cluster.nodes
            # A node that is still starting may be killed as well.
            if len(nodes) == MOST or (len(nodes) > 1 and draw.random() < 0.5):
                draw.choice(nodes).kill()
                killed += 1
            else:
                cluster.node(cpus=1)
                joined += 1
            now = driven.finished()
            counts["lost"] += len(rows.keys() - now.keys())
            counts["wrong"] += sum(
                not now[number].equals(row) for number, row in rows.items() if number in now
            )
            rows = now
            print(
                f"churn: {killed} kills, {len(rows)} trials, {counts}", file=sys.stderr, flush=True
            )
        counts["hangs"] += driven.interrupt() != 130
        while len(cluster.nodes) < MOST:
            cluster.node(cpus=1)
        cluster.ready()
        again = Driven(cluster, waiting_space, len(driven.finished()) + 8, "--keep", "none")
        counts["hangs"] += again.wait(2 * MOVES_S) != 0
        trials = pd.read_parquet(again.folder / "trials")
        epochs = pd.read_parquet(again.folder / "epochs")
    counts["lost"] += len(rows.keys() - set(trials["number"]))
    counts["lost"] += int((trials["status"] != "COMPLETE").sum())
    counts["duplicates"] = int(
        trials["key"].duplicated().sum()
        + trials["number"].duplicated().sum()
        + epochs.duplicated(["number", "epoch"]).sum()
    )
    for row in trials.itertuples():
        of_trial = sorted(epochs[epochs["number"] == row.number]["epoch"])
        right = row.accuracy == steady.accuracy(row.key, 1.0) and of_trial == list(range(1, 9))
        counts["wrong"] += row.status == "COMPLETE" and not right
    retried = int((trials["retries"].fillna(0) > 0).sum())
    return {
        "node_kills": killed,
        "node_joins": joined,
        **counts,
        "trials": len(trials),
        "trials_retried": retried,
    }
