"""The state of `raybench.compare` before its first trial: arms, design, plan, constraints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raybench import data, models
from raybench.arguments.duration import seconds_of
from raybench.arguments.paths import require_name
from raybench.arguments.resources import require_resources
from raybench.experiment import Experiment, nearest
from raybench.hardware import gpu
from raybench.models.check import check as check_model
from raybench.results.remote.address import is_remote, under
from raybench.results.remote.place import Place
from raybench.training import trained
from raybench.verdict import base as bases
from raybench.verdict import constraints as bounds
from raybench.verdict import costs, plan, prepared
from raybench.verdict.arms import Arms
from raybench.verdict.constraints import Constraint
from raybench.verdict.judgement import GOALS, Goal
from raybench.verdict.options import Compare
from raybench.verdict.plan import Plan
from raybench.verdict.study import TEACHER, Clock


@dataclass(frozen=True)
class Ready:
    """Everything that is known before the first trial."""

    folder: Path
    shown: str
    """The folder or address that was typed, for messages."""
    arms: Arms
    reasons: dict[str, str]
    plan: Plan
    budget_s: float | None
    constraints: Sequence[Constraint]


def name_of(options: Compare) -> str:
    """The name of the study, and of its folder. Raises ValueError: no such goal, or no name."""
    require_name("--name", options.name)
    slug = [options.model.replace(":", "."), Path(options.data).name, _goal(options.goal)]
    return options.name or "-".join(slug)


def prepare(
    options: Compare, clock: Clock, place: Place, cluster_slots: Callable[[], int]
) -> Ready:
    """Checks all that can be checked in seconds, then measures a short run of every arm.

    Args:
        cluster_slots: trials at once in the cluster of RAY_ADDRESS; not called without one.
    """
    goal = _goal(options.goal)
    limits = [bounds.parsed(text) for text in options.constraint]
    budget_s = seconds_of(options.budget) if options.budget else None
    for name, least in (("tuning", 1), ("seeds", 2), ("most_seeds", options.seeds)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(options, name)}: {least} or more")
    if not options.within >= 0:
        raise ValueError(f"--within is {options.within}: points of accuracy, 0 or more")
    if options.price_per_hour is not None and not options.price_per_hour >= 0:
        raise ValueError(f"--price-per-hour is {options.price_per_hour}: 0 or more")
    require_resources(options.gpus, options.max_concurrent, options.wait)
    if options.teacher:
        trained.find(options.teacher)
    folder = place.folder
    base = _baseline(options)
    wanted = [name.strip() for name in options.techniques.split(",") if name.strip()]
    # The address, if there is one: the teacher is part of a trial's key, on any machine.
    there = place.shown if is_remote(place.shown) else str(folder.absolute())
    teacher = options.teacher or under(there, TEACHER)
    arms, reasons = bases.fitting(base, wanted, teacher, goal)
    design = prepared.design_of(
        arms,
        base,
        goal=goal,
        within=options.within,
        tuning=options.tuning,
        seeds=options.seeds,
        most_seeds=options.most_seeds if budget_s else min(options.most_seeds, 2 * options.seeds),
        validation_images=len(data.load(base).validation),
    )
    same = prepared.asked(arms, replace(design, most_seeds=options.most_seeds))
    begun = prepared.kept(folder, same, design)
    here, steps, test_images = _slots(options), costs.steps_of(base), len(data.load(base).test)
    slots = cluster_slots() if os.environ.get("RAY_ADDRESS") else here
    if begun is None:
        print(
            f"raybench.compare: a short run of the baseline and {len(arms.settings)} techniques",
            file=sys.stderr,
        )
        measured = costs.measured(arms, min(slots, here))
        whole = Plan(design, measured, steps, slots, test_images, clock.spent_s())
        fitted = plan.fitted(whole, budget_s)
        kept = prepared.Kept(
            design=fitted.design,
            costs=measured,
            remarks=fitted.remarks,
            short_s=fitted.short_s,
        )
        if not options.plan:
            prepared.keep(folder, same, kept)
    else:
        fitted = Plan(
            begun.design, begun.costs, steps, slots, test_images, begun.short_s, begun.remarks
        )
    shrunk = {name: arms.settings[name] for name in fitted.design.settings}
    return Ready(folder, place.shown, Arms(base, shrunk), reasons, fitted, budget_s, limits)


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
    data.load(experiment)  # raises if there are fewer images than a batch
    return experiment


def _slots(options: Compare) -> int:
    """Trials at once on this machine, as estimated before Ray starts."""
    fits = os.cpu_count() or 1
    if gpu.available() and options.gpus != 0:
        fits = min(fits, int(gpu.count() / (options.gpus or 1)))
    return max(1, min(fits, options.max_concurrent or fits))
