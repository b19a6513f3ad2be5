"""python -m raybench.train: one experiment."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from raybench import Command, data, models
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_new_file, settled
from raybench.arguments.resources import require_resources
from raybench.arguments.shown_fields import Usual
from raybench.cluster import SETTINGS as SETTINGS  # before a module of the user imports Ray
from raybench.experiment import (
    Experiment,
    Recipe,
    checked,
    compatible,
    elastic_counts,
    preset,
    recipe_file,
    technique_types,
)
from raybench.hardware import gpu
from raybench.models.check import check as check_model
from raybench.reports.epoch_line import epoch_line
from raybench.results.read import Results, read
from raybench.results.remote import address as addresses
from raybench.results.remote.place import require
from raybench.results.rows import Row
from raybench.training import measure, process, runs
from raybench.training.checkpoint import remark, usable
from raybench.training.staged import MakeStages
from raybench.training.trainer import check, trainer


@dataclass(frozen=True, kw_only=True)
class Train:
    """Runs one experiment and prints one line per epoch; every field of Experiment is a flag.

    Examples:

      python -m raybench.train pruning
      python -m raybench.train pruning --prune.final-sparsity 0.8 --data cifar10 --recipe.epochs 30
      python -m raybench.train pruning --model resnet44 --workers 2 --store net.safetensors
      python -m raybench.train pruning --model my_models.nets:small --store small.packed
      python -m raybench.train --recipe-file results/resnet20-digits/recipe.json

    A technique is on when one of its flags is given. The result becomes a row of
    DIR/FAMILY-runs, which `python -m raybench.report` reads like a sweep.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    recipe_file: str | None = None
    """A file with an experiment, written by `raybench.compare`; other flags change it."""
    workers: Annotated[str | None, tyro.conf.arg(metavar="N|MIN:MAX")] = None
    """Data-parallel workers. MIN:MAX is elastic: as many as the cluster has, resuming from the last
    checkpoint when one dies or joins, with the same batch and learning rate."""
    strategy: str | None = None
    """How a step is distributed, same as --parallel.strategy: ddp, zero1, zero2, zero3, …"""
    checkpoint: Path | None = None
    """File for the run's state, written every epoch. If it exists, the run resumes from it."""
    gpus: float | None = None
    """GPUs per worker; 0 hides all GPUs. Default: 1 if there are any."""
    results: Annotated[str, tyro.conf.arg(metavar="DIR|ADDRESS")] = "results"
    """Folder of all results, or an address such as s3://bucket/runs."""
    store: Path | None = None
    """File for the trained model; `raybench.artefact.load` reads it."""


USUAL: Usual = {
    Train: ("experiment", "recipe_file", "workers", "checkpoint", "results", "store"),
    Experiment: ("model", "data", "image_size", "subset", "recipe"),
    Recipe: ("epochs", "batch", "lr"),
}
ABOUT = "Techniques: " + ", ".join(f"--{n.replace('_', '-')}.…" for n in technique_types())


def parse(arguments: list[str]) -> Train:
    """The command line, applied to the family's base experiment.

    Raises:
        ValueError: there is no such family, or a field has an invalid value.
    """
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "pruning"
    recipe = recipe_file.named_in(arguments)
    base: Experiment = preset.load(name).base if recipe is None else recipe_file.read(recipe)
    # Every technique gets its defaults; otherwise its flags would be hidden in a subcommand.
    off: dict[str, Any] = {
        field: technique()
        for field, technique in technique_types().items()
        if getattr(base, field) is None
    }
    options = command_line(
        Train,
        arguments[1:] if arguments and arguments[0] == name else arguments,
        "train",
        usual=USUAL,
        default=Train(experiment=replace(base, **off)),
        about=ABOUT,
    )
    flags = [a.removeprefix("--") for a in arguments if a.startswith("--")]
    groups = {flag.partition(".")[0].replace("-", "_") for flag in flags}
    unused: dict[str, Any] = {field: None for field in off if field not in groups}
    named = {name: getattr(options, name) for name in ("results", "store", "checkpoint")}
    paths: dict[str, Any] = {name: settled(path) for name, path in named.items() if path}
    return _spread(replace(options, experiment=replace(options.experiment, **unused), **paths))


def _spread(options: Train) -> Train:
    """The options with --workers and --strategy in the experiment, which is checked."""
    experiment = options.experiment
    spread: dict[str, Any] = {}
    if options.strategy is not None:
        spread["strategy"] = options.strategy
    if options.workers is not None:
        least, most = _range(options.workers)
        elastic = least != most
        spread["workers"] = max(elastic_counts(experiment, least, most)) if elastic else most
    experiment = replace(experiment, parallel=replace(experiment.parallel, **spread))
    experiment = models.with_source(checked(experiment))
    return replace(options, experiment=compatible(experiment))


def _range(workers: str) -> tuple[int, int]:
    """Minimum and maximum of `N` or `MIN:MAX`."""
    least, _, most = workers.partition(":")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise ValueError(f"--workers {workers!r}: a number, or a range such as 1:4") from None


def _fits_here(options: Train) -> None:
    """Refuses experiments that cannot fit on this machine; starting Ray would take seconds.

    Raises:
        ValueError: there are more workers or stages than processors, and RAY_ADDRESS is not set.
    """
    workers, stages = options.experiment.parallel.workers, options.experiment.pipeline.stages
    least = workers if options.workers is None else _range(options.workers)[0]
    cpus = os.cpu_count() or 1
    for count, name, flag in ((least, "workers", "--workers"), (stages, "stages", "stages")):
        if count > cpus and not os.environ.get("RAY_ADDRESS"):
            raise ValueError(
                f"{count} {name} do not fit: this machine has {cpus} CPUs, and each takes one; "
                f"use fewer {flag}, or set RAY_ADDRESS to a larger cluster"
            )


def train(experiment: Experiment, **options: Any) -> Results:
    """Trains one experiment and returns its tables: one trial, and its epochs.

        train(replace(base, prune=Prune(final_sparsity=0.8)), store="net.packed")

    Args:
        options: the command's other options, such as store, checkpoint and results.

    Raises:
        ValueError: wrong usage, with advice.
        OSError: the results cannot be written.
        RuntimeError: the training failed; its row says why.
    """
    given: dict[str, Any] = {n: Path(options[n]) for n in ("store", "checkpoint") if options.get(n)}
    if "results" in options:
        given["results"] = str(options["results"])
    asked = _spread(Train(experiment=experiment, **{**options, **given}))
    with gpu.hidden(asked.gpus == 0):
        return _trained(asked)


def run(arguments: list[str]) -> int:
    """The exit code: 0, 1 the training failed, 2 usage, 130 interrupted."""
    code = 0
    try:
        options = parse(arguments)
        with gpu.hidden(options.gpus == 0):
            _trained(options)
    except KeyboardInterrupt:
        print("raybench.train: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"raybench.train: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"raybench.train: {error}", file=sys.stderr)
        code = 1
    folder = addresses.under(options.results, runs.name_of(options.experiment))
    print(f"Parquet: {folder}/trials, {folder}/epochs")
    return code


def _trained(options: Train) -> Results:
    """Runs the experiment, prints a line per epoch and appends its row. Raises as for `train`."""
    experiment = options.experiment
    require_resources(options.gpus)
    require(options.results)
    require_new_file(options.store)
    if options.checkpoint is not None:
        require_new_file(options.checkpoint)
        if damage := remark(options.checkpoint):
            print(f"raybench.train: {damage}", file=sys.stderr)
    _fits_here(options)
    check(experiment)
    device = measure.pick_device()
    dtype, reason = measure.pick_dtype(experiment.recipe.precision, device)
    images = data.load(experiment)
    check_model(experiment.model, classes=images.classes, image_size=experiment.image_size)
    if not addresses.is_remote(options.results):
        Path(options.results, runs.name_of(experiment)).mkdir(parents=True, exist_ok=True)
    print(
        f"{experiment.model} on {experiment.data} ({len(images.train):,} / "
        f"{len(images.validation):,} / {len(images.test):,} images), {experiment.recipe.epochs} "
        f"epochs, {device}, {str(dtype)[6:]} ({reason}), "
        f"{experiment.parallel.workers} worker(s)",
        flush=True,
    )
    strategy = experiment.parallel.strategy
    if experiment.parallel.workers == 1 and strategy not in ("ddp", "zero3_offload"):
        print(f"raybench.train: with one worker {strategy} is the same as ddp", file=sys.stderr)
    epochs: list[Row] = []
    failure: Exception | None = None
    try:
        for number, metrics in _reports(options):
            epochs.append({"epoch": number, **metrics})
            print(epoch_line(experiment, number, metrics), flush=True)
    except ValueError:
        raise
    except Exception as error:
        failure = error
    folder, number = runs.keep(options.results, experiment, images.sha256, epochs, failure)
    if failure is not None:
        raise RuntimeError(f"{type(failure).__name__}: {failure}") from failure
    return read(folder).only(number)


def _reports(options: Train) -> Iterator[tuple[int, dict[str, Any]]]:
    """Epoch number and metrics, from this process or from a group of workers."""
    experiment, checkpoint = options.experiment, options.checkpoint
    least, most = _range(options.workers or str(experiment.parallel.workers))
    stages = experiment.pipeline.stages
    if most == stages == 1:
        process.prepare(torch.get_num_threads())
        yield from _epochs(options)
        return
    from raybench.cluster.elastic import run_elastic
    from raybench.cluster.run_once import run_once
    from raybench.cluster.session import session, wait_for_room
    from raybench.cluster.stages import Staged

    with session("raybench.train"), tempfile.TemporaryDirectory() as scratch:
        gpus = wait_for_room(least, stages, experiment.pipeline.transport, options.gpus)
        if stages > 1:  # the trainer in this process calls the stages' actors
            process.prepare(threads=1)
            yield from _epochs(options, partial(Staged, gpus=gpus))
            return
        state = checkpoint or Path(scratch) / "checkpoint.pt"
        if least < most:
            yield from run_elastic(experiment, least, most, gpus, state, options.store)
        else:
            kept = checkpoint is not None
            yield from run_once(experiment, gpus, state, options.store, every_epoch=kept)


def _epochs(options: Train, *stages: MakeStages) -> Iterator[tuple[int, dict[str, Any]]]:
    """A run in this process; it saves every epoch if a checkpoint is given."""
    checkpoint = options.checkpoint
    train = trainer(options.experiment, *stages)
    resume = usable(checkpoint) if checkpoint else None
    for epoch in train(options.experiment, resume=resume, store=options.store):
        if checkpoint and not epoch.last:
            epoch.save(checkpoint)
        yield epoch.number, epoch.metrics


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
