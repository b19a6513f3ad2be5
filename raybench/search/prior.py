"""Prior: the complete trials of older sweeps, with which a search begins.

They are copied into the new sweep's log, so it decides the same if the older sweeps are deleted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from raybench.results import log
from raybench.results.front import ranks
from raybench.results.log import Record
from raybench.results.remote.fetched import with_log
from raybench.search.suggestions import Suggestion

Guests = list[Suggestion]

MOST = 96  # trials of each older sweep, the best ones


def of_folders(folders: Sequence[Path | str], objectives: Mapping[str, str]) -> dict[str, Any]:
    """The content of a `prior` record.

    Raises:
        ValueError: a folder or address holds no log, or no complete trial with these objectives.
        OSError: the store at an address refuses or does not answer.
    """
    sweeps = []
    for folder in folders:
        with with_log(folder) as copy:
            path = log.path_in(copy)
            if not path.exists():
                raise ValueError(f"--warm-start {folder}: it holds no sweep with a log")
            trials = of_records(filter(None, log.read(path)), objectives)
        if not trials:
            names = ", ".join(objectives)
            raise ValueError(f"--warm-start {folder}: no trial is complete with {names}")
        sweeps.append(trials)
    return {"sweeps": sweeps}


def of_records(records: Iterable[Record], objectives: Mapping[str, str]) -> list[dict[str, Any]]:
    """The best complete trials in the records of a sweep, at most `MOST`."""
    trials = _complete(records, objectives)
    order = ranks([one["values"] for one in trials], list(objectives.values())) if trials else []
    best = sorted(range(len(trials)), key=order.__getitem__)[:MOST]
    return [trials[place] for place in sorted(best)]


def guests(content: Mapping[str, Any], objectives: Sequence[str], last: int) -> list[Guests]:
    """The trials of a `prior` record, by sweep.

    Args:
        last: the last epoch of the new sweep, at which their values count.
    """
    return [
        [
            Suggestion(
                number,
                one["params"],
                one["distributions"],
                TrialState.COMPLETE,
                one["values"],
                {last: dict(zip(objectives, one["values"], strict=True))},
            )
            for number, one in enumerate(trials)
        ]
        for trials in content["sweeps"]
    ]


def translated(guest: Suggestion, distributions: Mapping[str, BaseDistribution]) -> Suggestion:
    """A guest with the parameters that the new space also has, in that space's form."""
    params: dict[str, float] = {}
    for name, value in guest.external().items():
        kind = distributions.get(name)
        if kind is not None and (internal := internal_of(kind, value)) is not None:
            params[name] = internal
    texts = {name: guest.distributions[name] for name in params}
    return Suggestion(guest.number, params, texts, guest.state, guest.values, guest.reports)


def internal_of(kind: BaseDistribution, value: Any) -> float | None:
    """Optuna's internal value; None if the distribution does not contain it."""
    if isinstance(kind, CategoricalDistribution):
        return float(kind.choices.index(value)) if value in kind.choices else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    internal = kind.to_internal_repr(value)
    return internal if kind._contains(internal) else None


def _complete(records: Iterable[Record], objectives: Mapping[str, str]) -> list[dict[str, Any]]:
    suggested: dict[int, dict[str, Any]] = {}
    trials = []
    for kind, _, content in records:
        if kind == "suggested":
            suggested[content["number"]] = content
        elif kind == "trial" and content.get("status") == "COMPLETE":
            values = [content.get(name) for name in objectives]
            numbers = [float(v) for v in values if v is not None and math.isfinite(v)]
            whole = len(numbers) == len(objectives)
            if whole and (asked := suggested.pop(content["number"], None)) is not None:
                kept = {name: asked[name] for name in ("params", "distributions")}
                trials.append({**kept, "values": numbers})
    return trials
