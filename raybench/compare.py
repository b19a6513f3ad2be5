"""python -m raybench.compare: which technique pays, for this model on this data?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro

from raybench import data, models
from raybench.arguments.parse import parse as command_line
from raybench.arguments.shown_fields import Usual
from raybench.experiment import Experiment, nearest
from raybench.models.check import check as check_model
from raybench.reports import verdict
from raybench.reports.page import as_html
from raybench.results.read import read
from raybench.search.progress import Progress
from raybench.search.space import Overrides
from raybench.search.sweep import Sweep
from raybench.verdict import base as bases
from raybench.verdict import constraints as bounds
from raybench.verdict import costs, finish, plan, prepared, words
from raybench.verdict.arms import Arms
from raybench.verdict.constraints import Constraint
from raybench.verdict.judgement import GOALS, Goal
from raybench.verdict.plan import Plan
from raybench.verdict.study import SPENT, TEACHER, Clock, Study

PAGE = "verdict.html"
MANY = 10**6  # trials: the study says when it is over


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Tells which techniques pay for a model on your data, and writes the recipe that does.

    Examples:

      python -m raybench.compare
      python -m raybench.compare --model resnet20 --data cifar10 --subset 0.2 --budget 2h
      python -m raybench.compare --model vit192x4 --goal latency --constraint "latency_ms <= 2"
      python -m raybench.compare --model my_models.nets:small_net --data photos --plan

    The baseline and every technique that fits the model get the same tuning and the same seeds.
    A technique pays where the goal gets better and no more than --within points of accuracy are
    lost, both with confidence. After a crash the same command goes on, and so does one with a
    larger --budget.
    """

    model: str = "resnet20"
    """A name, or `package.module:factory` of your own."""
    data: str = "digits"
    """digits, cifar10, cifar100, beans, or a folder of images."""
    subset: float = 1.0
    """Share of the training images to use, where the machine is slow."""
    image_size: int = 32
    """Side of an image in pixels."""
    start_from: str = ""
    """First weights: a trained model's file, RESULTS#TRIAL, timm:hub. Default: fresh ones."""
    goal: str = "bytes"
    """What is to get better: bytes, latency, train_time, memory or accuracy."""
    within: float = 1.0
    """Points of accuracy that may be lost, for every goal but accuracy."""
    constraint: tuple[str, ...] = ()
    """Bounds on the recommended model, such as "latency_ms <= 2" "model_bytes < 100000"."""
    techniques: str = ""
    """Names separated by commas. Default: all that fit the model."""
    teacher: str = ""
    """A trained model to distil from. Default: the tuned baseline of the study."""
    budget: str = ""
    """Time for all of it, such as 45m or 2h. Default: as long as the standard study takes."""
    plan: bool = False
    """Prints what the study would run and take, and ends."""
    price_per_hour: float | None = None
    """Price of an hour of this machine, for the plan."""
    epochs: int | None = None
    """Epochs of each trial. Default: 3, for a quick answer."""
    tuning: int = 3
    """Trials of every arm to choose its learning rate and setting."""
    seeds: int = 4
    """Paired seeds of every arm to begin with."""
    most_seeds: int = 12
    """Paired seeds at most, where a budget leaves time for more."""
    name: str | None = None
    """Name of the study, and of its folder. Default: MODEL-DATA-GOAL."""
    results: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """Folder of all results."""
    concurrent: int | None = None
    """Trials at once. Default: what the machine holds."""
    gpus: float | None = None
    """GPUs of each trial, fractions allowed. Default: 1 where there is any."""


USUAL: Usual = {
    Compare: (
        *("model", "data", "subset", "goal", "within", "constraint", "techniques", "budget"),
        *("plan", "epochs", "name", "results", "concurrent"),
    )
}


@dataclass(frozen=True)
class Ready:
    """All that is known before the first trial."""

    folder: Path
    arms: Arms
    reasons: dict[str, str]
    plan: Plan
    budget_s: float | None
    constraints: Sequence[Constraint]


def run(options: Compare) -> int:
    """The exit code: 0, 1 no recipe, 2 usage, 130 interrupted and resumable."""
    clock = Clock(began=time.monotonic())
    try:
        ready = _ready(options)
        price = options.price_per_hour
        print(words.plan_text(ready.plan, ready.reasons, ready.budget_s, price))
        if options.plan:
            return 0
        return _studied(ready, options, clock)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"raybench.compare: {error}", file=sys.stderr)
        return 2


# --- Before -------------------------------------------------------------------------------------


def _ready(options: Compare) -> Ready:
    """Checks what can be told within seconds, then measures a short run of every arm."""
    goal = _goal(options.goal)
    limits = [bounds.parsed(text) for text in options.constraint]
    budget_s = plan.seconds_of(options.budget) if options.budget else None
    for name, least in (("tuning", 1), ("seeds", 2), ("most_seeds", options.seeds)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(options, name)}: {least} or more")
    if not options.within >= 0:
        raise ValueError(f"--within is {options.within}: points of accuracy, 0 or more")
    slug = "-".join([options.model.replace(":", "."), Path(options.data).name, goal])
    folder = options.results / (options.name or slug)
    base = _baseline(options)
    wanted = [name.strip() for name in options.techniques.split(",") if name.strip()]
    teacher = options.teacher or str((folder / TEACHER).absolute())
    arms, reasons = bases.fitting(base, wanted, teacher, goal)
    design = prepared.design_of(
        arms,
        base,
        goal=goal,
        within=options.within,
        tuning=options.tuning,
        seeds=options.seeds,
        most_seeds=options.most_seeds if budget_s else options.seeds,
    )
    same = prepared.asked(arms, replace(design, most_seeds=options.most_seeds))
    begun = prepared.kept(folder, same, design)
    slots, steps, test_images = _slots(options), costs.steps_of(base), len(data.load(base).test)
    if begun is None:
        print(
            f"raybench.compare: a short run of the baseline and {len(arms.settings)} techniques",
            file=sys.stderr,
        )
        measured = costs.measured(arms, slots)
        whole = Plan(design, measured, steps, slots, test_images)
        fitted = plan.fitted(whole, budget_s)
        kept = prepared.Kept(design=fitted.design, costs=measured, remarks=fitted.remarks)
        if not options.plan:
            prepared.keep(folder, same, kept)
    else:
        fitted = Plan(begun.design, begun.costs, steps, slots, test_images, begun.remarks)
    shrunk = {name: arms.settings[name] for name in fitted.design.settings}
    return Ready(folder, Arms(base, shrunk), reasons, fitted, budget_s, limits)


def _goal(text: str) -> Goal:
    for goal in GOALS:
        if goal == text:
            return goal
    raise ValueError(f"no goal {text!r}; {nearest(text, list(GOALS))}")


def _baseline(options: Compare) -> Experiment:
    """The baseline's experiment, with its data opened and its model built once."""
    experiment = Experiment(
        family=bases.FAMILY,
        model=options.model,
        data=options.data,
        subset=options.subset,
        image_size=options.image_size,
        start_from=options.start_from,
        recipe=replace(bases.WITHOUT, batch=1),
    )
    images = data.load(experiment)
    experiment = models.with_source(experiment)
    size, classes = options.image_size, images.classes
    check_model(options.model, classes=classes, image_size=size)
    recipe = bases.recipe_of(options.model, classes=classes, image_size=size)
    if options.start_from:
        recipe = replace(recipe, lr=bases.FROM_TRAINED * recipe.lr)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs)
    experiment = replace(experiment, recipe=recipe)
    data.load(experiment)  # whether it holds a batch
    return experiment


def _slots(options: Compare) -> int:
    """Trials at once, before Ray has said what it holds."""
    fits = os.cpu_count() or 1
    if torch.cuda.is_available() and options.gpus != 0:
        fits = min(fits, int(torch.cuda.device_count() / (options.gpus or 1)))
    return options.concurrent or max(1, fits)


# --- The study ----------------------------------------------------------------------------------


def _studied(ready: Ready, options: Compare, clock: Clock) -> int:
    from raybench.cluster.execute import execute
    from raybench.cluster.session import concurrency, session

    design = ready.plan.design
    clock.budget_s, clock.reserved_s = ready.budget_s, ready.plan.after_s
    proposer = partial(
        Study,
        design=design,
        arms=ready.arms,
        clock=clock,
        seconds=ready.plan.seconds(),
        slots=ready.plan.slots,
        folder=ready.folder,
    )
    space = prepared.space_of(ready.arms, prepared.asked(ready.arms, design) | {"most_seeds": 0})
    sweep = Sweep(
        ready.folder,
        space,
        trials=MANY,
        overrides=Overrides(),
        keep="all",
        early_stopping=False,
        sampler="random",
        proposer=lambda _, sampling: proposer(sampling=sampling),
    )
    study = sweep.proposals
    assert isinstance(study, Study)
    study.remember = lambda seconds: sweep.store.put(SPENT, {"seconds": seconds})
    try:
        with session():
            concurrent, gpus = concurrency(1, options.gpus, options.concurrent)
            with Progress(sweep) as progress:
                execute(sweep, progress, workers=1, gpus=gpus, concurrent=concurrent)
        if sweep.unfinished and not study.out_of_time:
            print(
                f"raybench.compare: interrupted after {sweep.tally.ended} trials; the same command "
                "goes on",
                file=sys.stderr,
            )
            return 130

        def trial_of(number: int) -> str:
            return str(sweep.store.trials[number]["trial"])

        finished = finish.finish(
            study, ready.folder, trial_of, ready.constraints, ready.reasons, _say
        )
        spent_s = clock.spent_s()
        study.remember(spent_s)
        words.save(finished, ready.plan, ready.folder, ready.budget_s, spent_s)
    finally:
        sweep.close()
    page = as_html(read(ready.folder), verdict=verdict.read(ready.folder))
    (ready.folder / PAGE).write_text(page)
    print(words.result_text(finished, design, ready.folder, spent_s))
    return 0 if finished.choice.meets else 1


def _say(text: str) -> None:
    print(f"raybench.compare: {text}", file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> Compare:
    """The command line. Raises SystemExit."""
    return command_line(Compare, arguments, "compare", usual=USUAL)


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
