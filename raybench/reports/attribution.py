"""Attribution: the effect of each ingredient, from a sweep that leaves out one at a time.

    all         a b c d    the effect of b is the difference between "all" and "all but b", seed by
    all but a     b c d    seed: an ingredient is judged together with the others, because that is
    all but b   a   c d    where it is used
    …
    none                   in addition: the effect of all of them together

Which columns belong to an ingredient is inferred from the trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from raybench.reports.effect import Effect, effect, times
from raybench.reports.varied import is_input, of_technique
from raybench.results.read import Results

Columns = frozenset[str]
TITLE = "Contribution of each ingredient, seed by seed (mean, 95 % t interval)"
OFF = {"<NA>", "nan", "None", "", "0", "0.0", "False", "1", "fp32"}
"""Values, as text, of an ingredient that is off: a technique, a recipe field, a second worker."""


@dataclass(frozen=True)
class Attribution:
    """The effect of an ingredient when it is added to the others."""

    ingredient: str
    points: Effect
    """Gain in test accuracy, in percentage points."""
    smaller: Effect
    """How many times smaller the file is; a geometric mean, as for every ratio."""
    faster: Effect
    """How many times fewer seconds an epoch takes."""


@dataclass(frozen=True)
class Arm:
    """Trials that differ only in their seeds."""

    values: dict[str, str]
    """The inputs that vary in the sweep, as text."""
    trials: pd.DataFrame
    """The trials' results, by seed."""

    @property
    def on(self) -> int:
        return sum(value not in OFF for value in self.values.values())

    def changed(self, other: Arm) -> Columns:
        """The columns in which the other arm differs."""
        return frozenset(name for name in self.values if other.values[name] != self.values[name])


def attribute(results: Results) -> list[Attribution]:
    """The effect of each ingredient, largest accuracy gain first, then of all together.

    Raises:
        ValueError: complete trials of "all", or of "all" without one ingredient, are missing.
    """
    arms = _arms(results.trials)
    design = _design(arms)
    if design is None:
        left = int((results.trials["status"] != "COMPLETE").sum())
        raise ValueError(
            f"{results.about['sweep']} has no arm from which the others leave out one ingredient "
            f"each ({len(arms)} arms, {left} trials not complete): run "
            "search_spaces/attribution.py, or a similar space"
        )
    whole, ingredients = design
    inputs = [name for name in results.trials.columns if is_input(name)]
    effects = [
        _compared(_named(changed, inputs), whole, arm) for changed, arm in ingredients.items()
    ]
    effects.sort(key=lambda one: -one.points.mean)
    together = frozenset().union(*ingredients)
    without = [arm for arm in arms if whole.changed(arm) == together]
    if len(ingredients) > 1:
        effects += [_compared("all together", whole, arm) for arm in without]
    return effects


def table(attributions: list[Attribution]) -> pd.DataFrame:
    """One row per ingredient."""
    return pd.DataFrame(
        {
            "ingredient": one.ingredient,
            "seeds": one.points.seeds,
            "accuracy, points": f"{one.points.mean:+.2f}",
            "accuracy 95 %": _interval(one.points, "+.2f"),
            "times smaller": f"{one.smaller.mean:.2f}",
            "smaller 95 %": _interval(one.smaller, ".2f"),
            "times faster": f"{one.faster.mean:.2f}",
            "faster 95 %": _interval(one.faster, ".2f"),
        }
        for one in attributions
    )


def _arms(trials: pd.DataFrame) -> list[Arm]:
    done = trials[trials["status"] == "COMPLETE"]
    inputs = [name for name in done.columns if is_input(name) and name != "seed"]
    varied = [name for name in inputs if done[name].nunique(dropna=False) > 1]
    rows = [tuple(map(str, row)) for row in done[varied].itertuples(index=False, name=None)]
    arms = []
    for row in dict.fromkeys(rows):
        of_arm = done[[other == row for other in rows]]
        measured = of_arm[["seed", "test_accuracy", "model_bytes", "s_per_epoch"]].astype(float)
        # A seed that ran twice counts once.
        arms.append(Arm(dict(zip(varied, row, strict=True)), measured.groupby("seed").mean()))
    return arms


def _design(arms: list[Arm]) -> tuple[Arm, dict[Columns, Arm]] | None:
    """The arm with all ingredients, and by each ingredient's columns the arm without it.

    Every other arm must leave out one ingredient, or several that other arms leave out alone.
    With two ingredients the arms form a square and every corner qualifies; the corner with the most
    ingredients on counts as "all".
    """
    designs = []
    for whole in arms:
        changes = {id(arm): whole.changed(arm) for arm in arms if arm is not whole}
        alone = {
            changes[id(arm)]: arm
            for arm in arms
            if arm is not whole and not any(c < changes[id(arm)] for c in changes.values())
        }
        apart = not any(a & b for a, b in combinations(alone, 2))
        once = sum(change in alone for change in changes.values()) == len(alone)
        made_of = all(
            change == frozenset().union(*(one for one in alone if one <= change))
            for change in changes.values()
        )
        if alone and apart and once and made_of:
            designs.append((whole, alone))
    return max(designs, key=lambda design: (len(design[1]), design[0].on), default=None)


def _named(changed: Columns, inputs: list[str]) -> str:
    """`prune` for all columns of a technique, else the columns' names without their groups."""
    techniques: dict[str, set[str]] = {}
    for name in filter(of_technique, inputs):
        techniques.setdefault(name.partition(".")[0], set()).add(name)
    whole = [technique for technique, columns in techniques.items() if columns <= changed]
    rest = changed.difference(*(techniques[technique] for technique in whole))
    parts = [name if of_technique(name) else name.rpartition(".")[2] for name in sorted(rest)]
    return ", ".join([*whole, *parts])


def _compared(ingredient: str, whole: Arm, without: Arm) -> Attribution:
    one, other = whole.trials.align(without.trials, join="inner", axis=0)

    def ratio(name: str) -> Effect:
        return times(np.log(other[name] / one[name]).to_numpy())

    points = 100 * (one["test_accuracy"] - other["test_accuracy"]).to_numpy()
    return Attribution(ingredient, effect(points), ratio("model_bytes"), ratio("s_per_epoch"))


def _interval(estimate: Effect, form: str) -> str:
    return "–" if math.isnan(estimate.low) else f"{estimate.low:{form}} … {estimate.high:{form}}"
