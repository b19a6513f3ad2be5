"""python -m raybench.tune: runs or resumes a sweep."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from optuna import Trial

from raybench import Command
from raybench.arguments.duration import seconds_of
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_name, settled, shipped
from raybench.arguments.resources import require_resources
from raybench.arguments.shown_fields import Usual
from raybench.cluster import SETTINGS as SETTINGS  # before a module of the user imports Ray
from raybench.experiment import Experiment
from raybench.reports.summary import reading, summary
from raybench.results.read import Results, read
from raybench.results.remote.place import Place, opened, require
from raybench.search.overrides import Overrides
from raybench.search.progress import Progress, left
from raybench.search.rungs import Rungs
from raybench.search.space import Space, load, of_function
from raybench.search.sweep import Sweep

TRIALS = 20  # default if neither --trials nor --budget is given
MANY = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Runs a sweep of experiments from a search space; after a crash the same command resumes.

    Examples:

      python -m raybench.tune --space search_spaces/pruning.py
      python -m raybench.tune --space search_spaces/pruning.py --data cifar10 --trials 100
      python -m raybench.tune --space search_spaces/pruning.py --model my_models.nets:small_net
      python -m raybench.tune --space search_spaces/pruning.py --budget 2h
      python -m raybench.tune --space search_spaces/pruning.py --results s3://bucket/runs
      ray job submit --working-dir . -- python -m raybench.tune --space search_spaces/pruning.py

    A larger --trials extends a finished sweep. Results are in DIR/NAME as Parquet.
    """

    space: Path
    """File with space(trial) and objectives. raybench's own are found from any folder."""
    name: str | None = None
    """Name of the sweep and of its folder. Default: the space file's stem."""
    trials: int | None = None
    """Total number of trials, including those of earlier runs of this sweep. Default: 20, or as
    many as --budget allows."""
    budget: str = ""
    """Total training time of all trials, such as 45m or 2h. The search then maximizes the gain per
    second, so that cheap trials come first."""
    epochs: int | None = None
    """Epochs of each trial; overrides the space."""
    data: str | None = None
    """digits, cifar10, cifar100, beans, or a folder of images; overrides the space."""
    model: str | None = None
    """Model of all trials, a name or your own `package.module:factory`; overrides the space."""
    subset: float | None = None
    """Share of the training images to use, for example on a slow machine."""
    workers: int | None = None
    """Data-parallel workers of each trial."""
    gpus: float | None = None
    """GPUs per worker, may be a fraction; 0 hides all GPUs. Default: 1 if the cluster has GPUs, and
    then nodes without a GPU run no trial."""
    results: Annotated[str, tyro.conf.arg(metavar="DIR|ADDRESS")] = "results"
    """Folder of all sweeps, or an address such as s3://bucket/runs."""
    seed: int = 0
    """Seed of the search; also added to the seed of every experiment."""
    max_concurrent: int | None = None
    """Most concurrent trials. Default: as many as fit into the cluster."""
    wait: float | None = None
    """Seconds to wait for new nodes while no trial has room. Default: 600 with an autoscaler, 60 in
    other clusters."""
    keep: Literal["best", "all", "none"] = "best"
    """Which trained models to keep; best is the Pareto front."""
    stopping: Literal["rungs", "none"] = "rungs"
    """rungs stops trials that fall behind (asynchronous successive halving) or break a constraint;
    none runs every trial to its end."""
    evidence: int = Rungs.evidence
    """Early stopping starts at a rung after this many trials, if their ranking there matched their
    final one, or the one before the rung. 0 stops from the first trial on."""
    silent: float | None = None
    """Longest time in seconds without a report of any trial. After that Ray counts as dead, and the
    sweep ends as after Ctrl-C. Default: no limit."""
    sampler: Literal["model", "tpe", "random"] = "model"
    """How trials are suggested: by a model that also learns from stopped trials, by Optuna's TPE,
    or at random. Use `random` as the baseline."""
    warm_start: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR")] = ()
    """Earlier sweeps to start from (folders or addresses), of this space or one that shares
    parameters and objectives; data and model may differ. Their results are weighted by how well the
    new trials agree."""


USUAL: Usual = {
    Tune: (
        *("space", "name", "trials", "epochs", "data", "model", "subset", "workers", "gpus"),
        *("budget", "results", "max_concurrent", "keep", "stopping"),
    )
}


def tune(
    space: Path | str | Callable[[Trial], Experiment],
    *,
    objectives: dict[str, str] | None = None,
    enqueue: Sequence[dict[str, Any]] = (),
    constraints: dict[str, str] | None = None,
    **options: Any,
) -> Results:
    """Runs a sweep, or resumes one, and returns its tables.

        tune("search_spaces/pruning.py", trials=16)
        tune(space, objectives={"accuracy": "max"}, name="mine", trials=16)

    Args:
        space: a file, or a function of an Optuna trial that returns an Experiment.
        objectives: for a function: column -> "max" or "min".
        enqueue: for a function: parameters to try first.
        constraints: for a function: column -> "<= NUMBER" or ">= NUMBER".
        options: the command's options, such as trials, epochs, data, model, results.

    Raises:
        ValueError: wrong usage, with advice.
        OSError: the results cannot be written.
        KeyboardInterrupt: it was interrupted; the same call resumes it.
    """
    if "results" in options:
        options["results"] = str(options["results"])
    if isinstance(space, Path | str):
        asked = Tune(space=Path(space), **options)
        _require(asked)
        searched = load(shipped(asked.space), _overrides(asked))
    elif objectives is None or "name" not in options:
        raise ValueError('a function as a space needs objectives={"accuracy": "max"} and a name')
    else:
        asked = Tune(space=Path(options["name"]), **options)
        _require(asked)
        searched = of_function(
            space, objectives, enqueue, options["name"], _overrides(asked), constraints
        )
    with _opened(asked) as place:
        sweep = _swept(searched, asked, place)
    if sweep.unfinished:
        raise KeyboardInterrupt(f"interrupted with {left(sweep)}")
    return read(place.folder)


def run(options: Tune) -> int:
    """The exit code: 0, 1 all trials failed, 2 usage, 130 interrupted and resumable."""
    try:
        # Checks that do not need Ray come first, so that errors appear within seconds.
        _require(options)
        searched = load(shipped(options.space), _overrides(options))
        with _opened(options) as place:
            sweep = _swept(searched, options, place)
        return _outcome(sweep, place)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"raybench.tune: {error}", file=sys.stderr)
        return 2


def _require(options: Tune) -> None:
    """Raises ValueError if an option is invalid, whatever the space."""
    require_resources(options.gpus, options.max_concurrent, options.wait)
    require_name("--name", options.name)
    require(options.results)
    if options.budget:
        seconds_of(options.budget)
    if options.silent is not None and not options.silent > 0:
        raise ValueError(f"--silent is {options.silent}: seconds, above 0")


def _opened(options: Tune) -> AbstractContextManager[Place]:
    name = options.name or options.space.stem
    # Only the models of the front can be dropped again.
    return opened(options.results, name, models=options.keep != "all")


def _trials(options: Tune) -> int:
    if options.trials is None:
        return MANY if options.budget else TRIALS
    return options.trials


def _overrides(options: Tune) -> Overrides:
    return Overrides(
        epochs=options.epochs,
        data=options.data,
        model=options.model,
        subset=options.subset,
        workers=options.workers,
        seed=options.seed,
    )


def _swept(space: Space, options: Tune, place: Place) -> Sweep:
    """The closed sweep after its trials; after an interrupt some trials are left."""
    sweep = Sweep(
        place.folder,
        space,
        trials=_trials(options),
        overrides=_overrides(options),
        keep=options.keep,
        early_stopping=options.stopping == "rungs",
        evidence=options.evidence,
        sampler=options.sampler,
        warm_start=options.warm_start,
        budget_s=seconds_of(options.budget) if options.budget else math.inf,
    )
    sweep.store.check, sweep.store.flush = place.check, place.flush
    for remark in sweep.store.remarks:
        print(f"raybench.tune: {remark}", file=sys.stderr)
    refused: Exception | None = None
    try:
        if sweep.unfinished:
            _execute(sweep, options)
    except (ValueError, OSError) as error:
        refused = error
    except RuntimeError as error:  # from Ray; the results so far are on disk
        print(f"raybench.tune: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        pass  # before Tune handles the signal, or a second signal; the outcome reports the rest
    try:
        sweep.close()
    except OSError as error:  # a full disk has been reported already
        refused = refused or error
    if refused is not None:
        raise refused
    return sweep


def parse(arguments: list[str]) -> Tune:
    """The command line. Raises SystemExit."""
    options = command_line(Tune, arguments, "tune", usual=USUAL)
    return replace(options, results=settled(options.results))


def _execute(sweep: Sweep, options: Tune) -> None:
    # Imported here, because importing Ray takes a second and the checks above do not need it.
    from raybench.cluster.execute import execute
    from raybench.cluster.session import session

    space = sweep.space
    pipelines = [example.pipeline for example in space.examples]
    with session(), Progress(sweep) as progress:
        execute(
            sweep,
            progress,
            workers=space.workers,
            stages=space.stages,
            transports={one.transport for one in pipelines if one.stages > 1},
            gpus=options.gpus,
            max_concurrent=options.max_concurrent,
            wait_s=options.wait,
            silent_s=options.silent,
        )


def _outcome(sweep: Sweep, place: Place) -> int:
    tally = sweep.tally
    if sweep.proposals.remark:
        print(f"raybench.tune: {sweep.proposals.remark}")
    if sweep.unfinished:
        print(f"raybench.tune: interrupted with {left(sweep)}", file=sys.stderr)
        return 130
    results = read(place.folder)
    print(summary(results, rest=f"raybench.report {place.shown} --wide"))
    print(reading(place.shown))
    return 1 if tally.counts["FAILED"] == tally.trials else 0


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
