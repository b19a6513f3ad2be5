"""Plan: what a study will run and how long it takes, before it starts, and what fits a budget.

needed    every arm's tuning and first seeds
then      combinations, runs at equal time, more seeds: as many as `forecast` expects
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from raybench.verdict.costs import Cost
from raybench.verdict.forecast import Forecast, forecast
from raybench.verdict.policy import Design
from raybench.verdict.study import combined_of

LEAST_TUNING = 2
RAY_S = 12.0  # Ray and its first actors
ALONE_S = 10.0  # of an arm
GRAPH_S = 6.0  # of an arm: its ONNX graph
CHECK_S = 15.0  # the fresh process


@dataclass(frozen=True)
class Plan:
    """A design, and the time and memory of its parts."""

    design: Design
    costs: Mapping[str, Cost]
    steps: int
    """Optimizer steps of an epoch."""
    slots: int
    test_images: int
    short_s: float = 13.0
    """Seconds from the command's start to the end of the short runs."""
    remarks: tuple[str, ...] = ()
    """What was reduced or left out to fit a budget, one sentence each."""

    def trial_s(self, name: str) -> float:
        """Seconds of a trial of this technique's arm; the baseline has the name ""."""
        return self.costs[name].seconds(self.design.epochs, self.steps)

    def seconds(self) -> dict[str, float]:
        """The expected seconds of a trial, for `Study`."""
        return {name: self.trial_s(name) for name in ("", *self.design.settings)}

    @property
    def runs(self) -> int:
        """Runs of an arm, before more seeds."""
        return self.design.tuning + self.design.seeds

    @property
    def start_s(self) -> float:
        """Seconds from the command's start to the first trial's start."""
        return self.short_s + RAY_S

    @property
    def needed_s(self) -> float:
        """Seconds of tuning and first seeds of all arms, and of the work around them."""
        trials = self.runs * sum(self.seconds().values())
        return self.start_s + trials / self.slots + self.after_s

    @property
    def after_s(self) -> float:
        """Seconds after the last trial, if every arm is measured alone."""
        return self._after_s(1 + len(self.design.settings) + combined_of(self.design))

    def forecast(self, budget_s: float | None) -> Forecast:
        """The expected number of trials."""
        limit_s = math.inf if budget_s is None else budget_s - self.start_s - self.after_s
        return forecast(
            self.design,
            self.costs,
            self.seconds(),
            slots=self.slots,
            test_images=self.test_images,
            limit_s=limit_s,
        )

    def expected_s(self, budget_s: float | None) -> float:
        """Seconds of the whole study."""
        trials = self.forecast(budget_s)
        return self.start_s + trials.trials_s + self._after_s(trials.arms)

    def _after_s(self, arms: int) -> float:
        scored_s = 2 * self.costs[""].end_s  # the recommended model and its graph
        return arms * (ALONE_S + GRAPH_S) + CHECK_S + scored_s


def fitted(plan: Plan, budget_s: float | None) -> Plan:
    """The plan made smaller until its needed part fits the budget.

    Raises:
        ValueError: not even the smallest study fits; the message says how long it takes.
    """
    if budget_s is None:
        return plan
    tried = plan
    while tried.needed_s > budget_s:
        smaller = _smaller(tried)
        if smaller is None:
            raise ValueError(
                f"--budget {span(budget_s)} is too short: the smallest study, the baseline and "
                f"{', '.join(tried.design.settings)} with {tried.design.tuning} trials of tuning "
                f"and {tried.design.seeds} seeds each, takes {span(tried.needed_s)}"
            )
        tried = smaller
    return tried


def _smaller(plan: Plan) -> Plan | None:
    """One step smaller: one tuning trial less per arm, or without the most expensive arm."""
    design = plan.design
    if design.tuning > LEAST_TUNING:
        fewer = design.tuning - 1
        remark = f"tuning is cut to {fewer} trials per arm, to fit the budget"
        remarks = (*(r for r in plan.remarks if not r.startswith("tuning")), remark)
        return replace(plan, design=replace(design, tuning=fewer), remarks=remarks)
    if len(design.settings) > 1:
        dearest = max(design.settings, key=plan.trial_s)
        settings = {name: count for name, count in design.settings.items() if name != dearest}
        pairs = frozenset(pair for pair in design.together if dearest not in pair)
        remarks = (*plan.remarks, f"{dearest} is left out, to fit the budget")
        return replace(
            plan, design=replace(design, settings=settings, together=pairs), remarks=remarks
        )
    return None


def table(plan: Plan, budget_s: float | None, price_per_hour: float | None) -> pd.DataFrame:
    """One row per part of the study, and one for the whole."""
    design, each, slots = plan.design, plan.seconds(), plan.slots
    columns = ["part", "trials", "hours", "memory, GB", "disk, MB"]
    rows: list[list[object]] = []
    for name in ("", *design.settings):
        cost, hours = plan.costs[name], plan.runs * each[name] / slots / 3600
        memory, disk = slots * cost.memory_bytes / 1e9, plan.runs * cost.model_bytes / 1e6
        rows.append([name or "baseline", plan.runs, hours, memory, disk])
    trials = plan.forecast(budget_s)
    certain = (1 + len(design.settings)) * plan.runs
    more, largest = trials.trials - certain, max(cost.model_bytes for cost in plan.costs.values())
    certain_s = sum(plan.runs * each[name] for name in ("", *design.settings)) / slots
    hours = max(0.0, trials.trials_s - certain_s) / 3600
    rows.append(["then, about", max(0, more), hours, None, max(0, more) * largest / 1e6])
    hours = (plan.expected_s(budget_s) - trials.trials_s) / 3600
    rows.append(["start and end", None, hours, None, None])
    frame = pd.DataFrame(rows, columns=columns)
    sums = frame[["trials", "disk, MB"]].sum()
    hours = plan.expected_s(budget_s) / 3600
    most = frame["memory, GB"].max()
    frame.loc[len(frame)] = ["in all", sums["trials"], hours, most, sums["disk, MB"]]
    frame["trials"] = frame["trials"].astype("Int64")
    if price_per_hour is not None:
        frame["cost"] = (frame["hours"] * price_per_hour).round(2)
    frame["hours"] = frame["hours"].round(3)
    return frame


def span(seconds: float) -> str:
    """Seconds in words: 1 h 20 min, 3 min, 40 s."""
    if math.isinf(seconds):
        return "no end"
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
