"""Kills the node of a running trial: is the trial lost, and how soon does it continue?

    one_worker   the node of the trial's actor
    workers      the node of one of a group's two workers
    stages       a node with a stage; the trial's actor is on this node or on the other one

An idle node has room for the trial, so this is the time to notice the loss and to start again.
"""

from __future__ import annotations

import random
import time
from statistics import median

import pandas as pd

from raybench.bench.cluster_parts.driven import Driven, until, with_process
from raybench.bench.cluster_parts.works import KINDS
from raybench.bench.machines import Machines

TITLES = {
    "one_worker": "ray::ResourceTrainable",
    "workers": "ray::RayTrainWorker",
    "stages": "ray::StageActor",
}
EPOCHS = {"one_worker": 400, "workers": 600, "stages": 500}  # they outlast the kills
KILLS = 3  # per kind, because a trial is resumed at most three times
MOVES_S = 120.0
ENDS_S = 900.0
claims = {
    "lost": "0",
    "node_recover_s": "at most 30",
    **{f"node_recover_s_{kind}": "at most 30" for kind in TITLES},
}


def measure(kills: int = KILLS, seed: int = 0) -> dict[str, float]:
    """Trials lost, and the median seconds from a node's death to the trial's next report.

    `node_recover_s` is the largest of the three medians. `restarted` counts trials that started
    again at epoch 1 instead of resuming from their state.
    """
    figures: dict[str, float] = {"lost": 0, "restarted": 0, "node_recover_s": 0}
    draw = random.Random(seed)
    for kind in TITLES:
        times, lost, again = killed(kind, kills, draw)
        figures["lost"] += lost
        figures["restarted"] += again
        middle = median(times or [float("inf")])
        figures["node_recover_s"] = max(figures["node_recover_s"], middle)
        figures[f"node_recover_s_{kind}"] = middle
        figures[f"node_recover_s_{kind}_max"] = max(times or [float("inf")])
        figures[f"node_kills_{kind}"] = len(times)
    return figures


def killed(kind: str, kills: int, draw: random.Random) -> tuple[list[float], int, int]:
    """Seconds until the trial continues; trials lost; trials that restarted at the first epoch."""
    space, more = KINDS[kind]
    times: list[float] = []
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(3 if kind != "one_worker" else 2):
            cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, space, 1, "--epochs", str(EPOCHS[kind]), "--keep", "all", *more)
        for _ in range(kills):
            before = driven.epochs()
            # A state is saved every 15 s: wait for one since the last kill.
            if not until(lambda: driven.epochs() > before + 2, MOVES_S, driven):  # noqa: B023
                break
            time.sleep(draw.uniform(15.0, 18.0))
            again = driven.goes_on()
            victims = with_process(cluster, TITLES[kind])
            if not victims:
                break
            killed = time.monotonic()
            draw.choice(victims).kill()
            moved = until(lambda: driven.goes_on() > again, MOVES_S, driven)  # noqa: B023
            times.append(time.monotonic() - killed if moved else float("inf"))
            cluster.node(cpus=1)
            cluster.ready()
        driven.wait(ENDS_S)
        trials = pd.read_parquet(driven.folder / "trials")
        starts = sum(row["epoch"] == 1 for record, row in driven.records() if record == "epoch")
        lost = 1 - int((trials["status"] == "COMPLETE").sum())
    return times, lost, starts - 1
