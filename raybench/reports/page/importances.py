"""Parameter importances by Optuna, from a study that is rebuilt in memory."""

from __future__ import annotations

import html
import json
import warnings
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection

from raybench.reports.page.axes import FROM_RATIO, title
from raybench.reports.page.embed import numbers
from raybench.reports.page.trial_names import parameters_of
from raybench.results.read import Results

LEAST = 20
"""Fewest complete trials; with fewer, the best tenth is one trial or none."""
NOT_RANKED = ("seed",)  # not a hyperparameter


def importances(results: Results) -> tuple[dict[str, Any] | None, str]:
    """A bar plot with one series per objective, and its caption; no plot if trials are too few.

    The evaluator is PED-ANOVA: it takes a second for 2,000 trials, where fANOVA takes half a
    minute.
    """
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    complete = complete.dropna(subset=list(results.objectives))
    parameters = [
        {name: _plain(value) for name, value in one.items() if name not in NOT_RANKED}
        for one in parameters_of(complete)
    ]
    if len(parameters) < LEAST:
        return None, (
            f"Importances need {LEAST} complete trials; this sweep has {len(parameters)}."
        )
    names = list(dict.fromkeys(name for one in parameters for name in one))
    common = [name for name in names if all(name in one for one in parameters)]
    ranked = [name for name in common if len({one[name] for one in parameters}) > 1]
    if len(ranked) < 2:
        return None, "Importances need two parameters that all complete trials have and vary."
    distributions = {name: _distribution([one[name] for one in parameters]) for name in ranked}
    traces = [
        _bars(
            complete[objective],
            way,
            [{n: one[n] for n in ranked} for one in parameters],
            distributions,
        )
        for objective, way in results.objectives.items()
    ]
    sentence = (
        "How much each parameter decides whether a trial is among the best tenth (PED-ANOVA)."
    )
    conditional = [name for name in names if name not in common]
    if conditional:
        sentence += f" Not ranked, since only some trials have them: {', '.join(conditional)}."
    height = 110 + len(ranked) * (18 + 14 * len(traces))
    layout = {
        "height": height,
        "barmode": "group",
        "xaxis": {"title": {"text": "importance"}, "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"label": "", "data": traces, "layout": layout}, sentence


def _bars(
    values: pd.Series,
    way: str,
    parameters: list[dict[str, Any]],
    distributions: dict[str, BaseDistribution],
) -> dict[str, Any]:
    """The importances for one objective, in the order of the parameters."""
    # The evaluator ranks low values first, whatever the study's direction.
    costs = values.astype(float) * (-1.0 if way == "max" else 1.0)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs each new study
    study = optuna.create_study(direction=StudyDirection.MINIMIZE)
    optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=distributions, value=cost)
            for params, cost in zip(parameters, costs, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that the evaluator is experimental
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {
        "type": "bar",
        "orientation": "h",
        "name": title(str(values.name)),
        "x": numbers(shares[name] for name in distributions),
        "y": [html.escape(name) for name in distributions],
        "hovertemplate": "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
    }


def _distribution(values: list[Any]) -> BaseDistribution:
    """The narrowest distribution with these values; the Parquet files do not store the original."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return IntDistribution(min(values), max(values))
    if kinds <= {int, float}:
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low > FROM_RATIO)
    return CategoricalDistribution(sorted(set(values), key=repr))


def _plain(value: Any) -> Any:
    """A value that a distribution can hold: a choice such as [1, 2] becomes text."""
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else json.dumps(value, default=str)
