"""python -m raybench.bench.grids.record NAME: trains every configuration of a grid's space.

    a sweep of random full trials ──▶ its Parquet ──▶ the columns that a simulation reads

An interrupted sweep is resumed. One core takes about ten minutes per grid.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import torch
import tyro

from raybench.arguments.nearest import nearest
from raybench.arguments.parse import parse as command_line
from raybench.bench.grids import space as spaces
from raybench.bench.grids.shipped import FOLDER
from raybench.search.overrides import Overrides
from raybench.search.space import Space, of_function
from raybench.search.sweep import Sweep
from raybench.training.trainer import train

NAMES = ["digits", "cifar10"]  # functions of the space
KEPT = {
    "trials": ("number", "status", "params", "epoch", *spaces.objectives, "train_s"),
    "epochs": ("number", "epoch", *spaces.objectives, "train_s"),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """Trains every configuration of a grid, and stores the curves beside this file.

    Examples:

      python -m raybench.bench.grids.record digits --results results
    """

    name: Annotated[str, tyro.conf.Positional]
    """digits or cifar10."""
    results: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """Folder for the whole sweep, which is about 3 MB."""
    trials: int = 180
    """Number of configurations; fewer than all are a random subset."""


def space_of(name: str) -> Space:
    """The checked space of a grid."""
    function = getattr(spaces, name)
    return of_function(function, spaces.objectives, (), f"{name}-grid", Overrides())


def record(sweep: Sweep) -> None:
    """Trains the sweep's trials one after another, in this process."""
    while (task := sweep.ask()) is not None:
        for epoch in train(task.experiment):
            sweep.report(task.number, epoch.number, epoch.metrics)
        sweep.finish(task.number, "COMPLETE")
        print(f"{sweep.name}: {sweep.tally.ended} trials", file=sys.stderr, flush=True)


def keep(folder: Path, to: Path) -> None:
    """Copies the columns that a simulation reads, and the metadata."""
    for table, columns in KEPT.items():
        parts = sorted((folder / table).glob("*.parquet"))
        (to / table).mkdir(parents=True, exist_ok=True)
        for part in parts:
            kept = pq.read_table(part).select(columns)
            pq.write_table(kept, to / table / part.name, compression="zstd")


def run(options: Record) -> int:
    """The exit code."""
    if options.name not in NAMES:
        print(f"no grid {options.name!r}; {nearest(options.name, NAMES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    folder = options.results / f"{options.name}-grid"
    sweep = Sweep(
        folder,
        space_of(options.name),
        trials=options.trials,
        overrides=Overrides(),
        keep="none",
        early_stopping=False,
        sampler="random",
    )
    try:
        record(sweep)
    finally:
        sweep.close()
    keep(folder, FOLDER / options.name)
    return 0


if __name__ == "__main__":
    sys.exit(run(command_line(Record, sys.argv[1:], "bench.grids.record")))
