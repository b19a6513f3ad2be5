"""Which inputs vary in a sweep, and which of its trials can be compared."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from raybench.results import core

ADDRESSES = ("start_from", "distill.teacher")


def is_input(name: str) -> bool:
    """Whether a column is a field of the Experiment: a dotted name or one of the few flat ones."""
    return "." in name or name in core.INPUTS


def of_technique(name: str) -> bool:
    """Whether a column is a technique's hyperparameter."""
    return "." in name and name.partition(".")[0] not in core.SETTINGS


def varied(trials: pd.DataFrame, shown: Collection[str] = ()) -> list[str]:
    """Inputs in which the trials differ, except the seed and those already `shown`.

    A technique that is on in some trials and off in others counts as varied. If none of its fields
    varies or is shown, its first field represents it.
    """
    names = [n for n in trials.columns if is_input(n) and n != "seed"]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0] if of_technique(name) else name, []).append(name)
    result = []
    for group in groups.values():
        technique = of_technique(group[0])
        of_group = [n for n in group if trials[n].nunique(dropna=technique) > 1]
        on = trials[group[0]].notna()
        if technique and not of_group and on.any() and not on.all():
            of_group = [] if set(group) & set(shown) else group[:1]
        result += [n for n in of_group if n not in shown]
    return result


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """The complete trials, prepared so that a table can pool them over seeds.

    If each seed starts from its own trained model or uses its own teacher, such as
    `trained/0.safetensors`, a star replaces the seed's number in the address.
    """
    done = trials[trials["status"] == "COMPLETE"].copy()
    for name in ADDRESSES:
        if name in done:
            done[name] = [
                address if pd.isna(address) else _without(seed, address)
                for address, seed in zip(done[name], done["seed"], strict=True)
            ]
    return done


def _without(seed: int, address: str) -> str:
    """The address with a star in place of the last number that equals the seed."""
    return re.sub(rf"^(.*)(?<!\d){seed}(?!\d)", r"\1*", address)


def alike(candidates: pd.DataFrame, row: pd.Series, names: Sequence[str]) -> pd.DataFrame:
    """The candidates equal to a row in these inputs, except the techniques'; all if none is.

    A plain model has no techniques, so these may differ. In a random search no two trials have the
    same learning rate; there all candidates represent the plain model.
    """
    agree = pd.Series(True, index=candidates.index)
    for name in names:
        if not of_technique(name):
            agree &= candidates[name].eq(row[name]).fillna(False).astype(bool)
    return candidates[agree] if agree.any() else candidates


def plain(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """A row's values in these columns; None for a technique that is off."""
    return {n: None if pd.isna(v) else v for n, v in zip(names, values, strict=True)}
