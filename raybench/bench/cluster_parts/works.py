"""Do sweeps, worker groups and pipelines run on nodes that share no folder?"""

from __future__ import annotations

from types import ModuleType

import pandas as pd

from raybench.bench.cluster_parts import group_space, stages_space, waiting_space
from raybench.bench.cluster_parts.driven import Driven
from raybench.bench.machines import Machines

KINDS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "one_worker": (waiting_space, ()),
    "workers": (group_space, ("--workers", "2")),
    "stages": (stages_space, ()),
}
TRIALS = 2
ENDS_S = 240.0
claims = {"works": "3, of 3"}


def measure() -> dict[str, float]:
    """How many of the three kinds complete all trials and store all models on the driver."""
    figures: dict[str, float] = {}
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(2):
            cluster.node(cpus=1)
        cluster.ready()
        for kind, (space, more) in KINDS.items():
            driven = Driven(cluster, space, TRIALS, "--epochs", "2", "--keep", "all", *more)
            ended = driven.wait(ENDS_S) == 0
            figures[f"works_{kind}"] = float(ended and is_complete(driven))
    return {"works": sum(figures.values()), **figures}


def is_complete(driven: Driven) -> bool:
    """Whether all trials are complete and their models are in the results folder."""
    trials = pd.read_parquet(driven.folder / "trials")
    models = {path.stem for path in (driven.folder / "models").glob("*.safetensors")}
    return (
        trials["status"].tolist() == ["COMPLETE"] * driven.trials
        and set(trials["trial"]) == models
        and not list(driven.folder.rglob("*.partial"))
    )
