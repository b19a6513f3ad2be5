"""python -m raybench.tune: runs or resumes a sweep."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from raybench.reports.summary import reading, summary
from raybench.results.read import read
from raybench.search.progress import Progress, left
from raybench.search.rungs import Rungs
from raybench.search.space import Overrides, load
from raybench.search.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Runs a sweep of experiments from a search space; the same command after a crash goes on.

    Examples:

      python -m raybench.tune --space search_spaces/pruning.py
      python -m raybench.tune --space search_spaces/pruning.py --data cifar10 --trials 100
      python -m raybench.tune --space search_spaces/pruning.py --model my_models.nets:small_net
      ray job submit --working-dir . -- python -m raybench.tune --space search_spaces/pruning.py

    A larger --trials extends a finished sweep. Results lie in DIR/NAME as Parquet.
    """

    space: Path
    """File with space(trial) and objectives."""
    name: str | None = None
    """Name of the sweep, and of its folder. Default: the space file's stem."""
    trials: int = 20
    """Trials in all, those of earlier runs of this sweep included."""
    epochs: int | None = None
    """Epochs of each trial, where the space shall not say."""
    data: str | None = None
    """digits, cifar10, cifar100, beans, or a folder of images."""
    model: str | None = None
    """Of every trial, in place of the space's: a name, or `package.module:factory` of your own."""
    subset: float | None = None
    """Share of the training images to use, where the machine is slow."""
    workers: int | None = None
    """Data-parallel workers of each trial."""
    gpus: float | None = None
    """GPUs of each worker, fractions allowed. Default: 1 where the cluster has any."""
    results: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """Folder of all sweeps. On several nodes it must be one that all of them see."""
    seed: int = 0
    """Added to the seed of every experiment, and the seed of the search."""
    concurrent: int | None = None
    """Trials at once. Default: what the cluster holds."""
    keep: Literal["best", "all", "none"] = "best"
    """Which trained models stay; best is the Pareto front."""
    early_stopping: bool = True
    """Stops the trials that fall behind (asynchronous successive halving)."""
    evidence: int = Rungs.evidence
    """Complete trials that must have shown that a rung's order is that of the end, before it stops
    any. 0 stops from the first trial on: for more slots than that, and long trials."""
    silent: float | None = None
    """Seconds without a report of any trial after which Ray is taken for gone, and the sweep ends
    as by Ctrl-C. Default: never."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How trials are suggested. random is what a search is to be compared with."""


def run(options: Tune) -> int:
    """The exit code: 0, 1 all trials failed, 2 usage, 130 interrupted and resumable."""
    overrides = Overrides(
        epochs=options.epochs,
        data=options.data,
        model=options.model,
        subset=options.subset,
        workers=options.workers,
        seed=options.seed,
    )
    folder = options.results / (options.name or options.space.stem)
    try:
        # What can be checked without Ray is checked first: an error shows within seconds.
        space = load(options.space, overrides)
        sweep = Sweep(
            folder,
            space,
            trials=options.trials,
            overrides=overrides,
            keep=options.keep,
            early_stopping=options.early_stopping,
            evidence=options.evidence,
            sampler=options.sampler,
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        return _refused(error)
    for remark in sweep.store.remarks:
        print(f"raybench.tune: {remark}", file=sys.stderr)
    refused: Exception | None = None
    try:
        if sweep.unfinished:
            _execute(sweep, options)
    except (ValueError, OSError) as error:
        refused = error
    except RuntimeError as error:  # of Ray: what is known is on the disk
        print(f"raybench.tune: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        pass  # before Tune takes the signal, or a second one: the outcome says what is left
    try:
        sweep.close()
    except OSError as error:  # a disk that is full once more has been reported
        refused = refused or error
    return _outcome(sweep, folder) if refused is None else _refused(refused)


def _execute(sweep: Sweep, options: Tune) -> None:
    # Imported here: Ray takes a second to import, and every check above can do without.
    from raybench.cluster.execute import execute
    from raybench.cluster.session import concurrency, session

    workers, stages = sweep.space.workers, sweep.space.stages
    with session():
        # A trial has several workers or several stages, never both.
        concurrent, gpus = concurrency(max(workers, stages), options.gpus, options.concurrent)
        with Progress(sweep) as progress:
            execute(
                sweep,
                progress,
                workers=workers,
                stages=stages,
                gpus=gpus,
                concurrent=concurrent,
                silent_s=options.silent,
            )


def _outcome(sweep: Sweep, folder: Path) -> int:
    tally = sweep.tally
    if sweep.proposals.remark:
        print(f"raybench.tune: {sweep.proposals.remark}")
    if sweep.unfinished:
        print(f"raybench.tune: interrupted with {left(sweep)}", file=sys.stderr)
        return 130
    results = read(folder)
    for text in (summary(results), reading(folder)):
        print(text)
    return 1 if tally.counts["FAILED"] == tally.trials else 0


def _refused(error: Exception) -> int:
    print(f"raybench.tune: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Tune, prog="python -m raybench.tune")))
