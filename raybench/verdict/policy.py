"""Policy: the next runs of a study, given the outcomes so far; without clock, Ray or files.

    tuning        every arm has the same number of runs for its learning rate and its setting
    seeds         the chosen settings of every arm, over the same seeds as the baseline
    combinations  pairs of the techniques that may pay, and all of them together: tuned, seeded
    more seeds    where a verdict is undecided and a few can decide it
    equal time    arms with longer or shorter epochs, for as many as fit the baseline's time
    more seeds    where a verdict is undecided and some more can decide it

The wanted runs depend only on ended runs, so a study that was killed resumes in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from raybench.reports.effect import effect
from raybench.verdict.arms import Run
from raybench.verdict.judgement import Goal, Judged, Outcome, Paired, judge, paired
from raybench.verdict.tuning import Tuning

History = Mapping[Run, Outcome | None]
"""The outcome of every started run; None while it runs."""
Arm = tuple[str, ...]
BASELINE: Arm = ()
LOOKS = (0, 2, 5, 9, 15)  # verdicts are computed again after these numbers of additional seeds


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design of a study."""

    settings: dict[str, int]
    """How many settings each technique has, by its name; all of them fit the model."""
    together: frozenset[frozenset[str]]
    """Pairs of techniques that can be combined."""
    epochs: int
    goal: Goal = "bytes"
    within: float = 1.0
    """Points of accuracy that may be lost."""
    tuning: int = 4
    """Runs of every arm to choose its learning rate and setting."""
    seeds: int = 3
    """Paired seeds of every arm to begin with."""
    most_seeds: int = 12
    combinations: int = 3
    """The largest number of pairs of techniques to try."""
    equal_time: bool = True
    validation_images: int = 0
    """Validation images: tuning chooses by the accuracy on them. 0: that accuracy has no error."""


@dataclass(frozen=True)
class State:
    """The progress of a study."""

    chosen: dict[Arm, Run]
    """Settings and learning rate of every arm whose tuning has ended, the baseline's first."""
    wanted: list[Run]
    """Runs that can start now, the most urgent first."""
    without: dict[Arm, str]
    """Arms of which no run of the tuning has a model, with the reason."""


def state(design: Design, history: History) -> State:
    """The progress of a study, and the runs that it wants next."""
    study = _Study(design, history)
    wanted = [run for run in dict.fromkeys(study.runs()) if run not in history]
    return State(study.chosen, wanted, study.without)


def seed_runs(run: Run, seeds: int) -> list[Run]:
    """The runs of an arm over the paired seeds; tuning has seed 0."""
    return [replace(run, seed=seed) for seed in range(1, seeds + 1)]


def equal_time_run(design: Design, history: History, base: Run, run: Run) -> Run | None:
    """The run with as many epochs as fit the baseline's training time; None before its seeds.

    It is the same run if the seeds show no difference in time.
    """
    pair = paired(history, run, base, design.seeds)
    if not len(pair.points):
        return None
    longer = effect(pair.logs["train_time"])
    if not (longer.low > 0 or longer.high < 0):
        return run
    epochs = round(design.epochs / math.exp(longer.mean))
    return replace(run, epochs=min(max(1, epochs), 2 * design.epochs))


class _Study:
    """One pass over the history."""

    def __init__(self, design: Design, history: History) -> None:
        self.design, self.history = design, history
        self.chosen: dict[Arm, Run] = {}
        self.without: dict[Arm, str] = {}

    def runs(self) -> Iterator[Run]:
        """All runs of the study that are known so far, including the started ones."""
        design = self.design
        yield from self._tuned(BASELINE, (), 0)
        base = self.chosen.get(BASELINE)
        if base is None:
            return
        yield from seed_runs(base, design.seeds)
        singles: list[Arm] = [(name,) for name in design.settings]
        for arm in singles:
            middle = (design.settings[arm[0]] + 1) // 2
            yield from self._with_seeds(arm, ((arm[0], middle),), base.lr_step)
        if not self._over([BASELINE, *singles]):
            return
        pairs = self._combined(singles)
        for arm in pairs:
            settings = tuple(s for (name,) in _parts(arm) for s in self.chosen[name,].settings)
            steps = [self.chosen[part].lr_step for part in _parts(arm)]
            yield from self._with_seeds(arm, settings, round(fmean(steps)))
        if not self._over(pairs):
            return
        yield from self._more_seeds(base, few=design.seeds)
        if design.equal_time:
            for run in self.chosen.values():
                equal = equal_time_run(design, self.history, base, run)
                if equal is not None and equal.epochs != run.epochs:
                    yield from seed_runs(equal, design.seeds)
        yield from self._more_seeds(base)

    # --- Tuning ---------------------------------------------------------------------------------

    def _with_seeds(
        self, arm: Arm, settings: tuple[tuple[str, int], ...], lr_step: int
    ) -> Iterator[Run]:
        yield from self._tuned(arm, settings, lr_step)
        if arm in self.chosen:
            yield from seed_runs(self.chosen[arm], self.design.seeds)

    def _tuned(
        self, arm: Arm, settings: tuple[tuple[str, int], ...], lr_step: int
    ) -> Iterator[Run]:
        """The tuning of an arm so far, and its choice once all of it has ended."""
        design = self.design
        tuning = Tuning(
            self.history,
            first=Run(settings, lr_step, design.epochs, 0),
            number=design.tuning,
            allowed=self._allowed(),
            settings=design.settings[arm[0]] if len(arm) == 1 else 0,
            strong=design.goal != "accuracy",
            images=design.validation_images,
        )
        yield from tuning.runs()
        if tuning.over:
            best = tuning.best()
            if best is None:
                self.without[arm] = "no run of its tuning has a model"
            else:
                self.chosen[arm] = best

    def _allowed(self) -> float:
        """The lowest accuracy in tuning that is within the allowed loss."""
        base = self.history[self.chosen[BASELINE]] if BASELINE in self.chosen else None
        return base.accuracy - self.design.within / 100 if base is not None else 1.0

    # --- Combinations, and more seeds -----------------------------------------------------------

    def _over(self, arms: list[Arm]) -> bool:
        """Whether the tuning and the first seeds of these arms have ended."""
        for arm in arms:
            if arm in self.without:
                continue
            if arm not in self.chosen:
                return False
            runs = seed_runs(self.chosen[arm], self.design.seeds)
            if any(self.history.get(run) is None for run in runs):
                return False
        return True

    def _combined(self, singles: list[Arm]) -> list[Arm]:
        """Pairs of arms that may pay, the best first, then all of them if more than two."""
        design, base = self.design, self.chosen[BASELINE]
        pairs = {
            arm: paired(self.history, self.chosen[arm], base, design.seeds)
            for arm in singles
            if arm in self.chosen
        }
        good = {arm: pair for arm, pair in pairs.items() if _may_pay(design, pair)}

        def worth(arms: tuple[Arm, ...]) -> float:
            return sum(_worth(design, good[arm]) for arm in arms)

        allowed = [
            pair
            for pair in combinations(good, 2)
            if frozenset(pair[0] + pair[1]) in design.together
        ]
        best = sorted(allowed, key=worth, reverse=True)[: design.combinations]
        combined: list[Arm] = [one + other for one, other in best]
        whole: list[Arm] = []
        for arm in sorted(good, key=lambda one: -worth((one,))):
            if all(frozenset(arm + other) in design.together for other in whole):
                whole.append(arm)
        together = tuple(name for name in design.settings if (name,) in whole)
        if design.combinations and len(together) > 2:
            combined.append(together)
        return combined

    def _more_seeds(self, base: Run, few: int | None = None) -> Iterator[Run]:
        """The next seeds of the undecided arms, first of the arm that needs the fewest.

        Args:
            few: leaves out arms that need more additional seeds than this.
        """
        design = self.design
        most = 1.5 * design.most_seeds
        looks = [design.seeds + more for more in LOOKS if design.seeds + more <= design.most_seeds]
        seeds = {arm: self._seeds(run, looks) for arm, run in self.chosen.items() if arm}
        waiting = {arm for arm, (_, over) in seeds.items() if not over}
        judged = judgements(
            design, self.history, self.chosen, {a: n for a, (n, _) in seeds.items()}
        )
        undecided = sorted(
            (one for one in judged.values() if one.verdict == "undecided"),
            key=lambda one: one.more or 10**6,
        )
        for one in undecided:
            count, _ = seeds[one.arm]
            later = [look for look in looks if look > count]
            if one.arm in waiting:  # a look has begun
                yield from (*seed_runs(base, count), *seed_runs(self.chosen[one.arm], count))
            elif later and one.more is not None and one.more <= min(few or most, most - count):
                yield from seed_runs(base, later[0])
                yield from seed_runs(self.chosen[one.arm], later[0])

    def _seeds(self, run: Run, looks: list[int]) -> tuple[int, bool]:
        """The seeds of the latest look that has begun, and whether all of them have ended."""
        begun = [look for look in looks if replace(run, seed=look) in self.history]
        count = begun[-1] if begun else looks[0]
        return count, all(self.history.get(r) is not None for r in seed_runs(run, count))


def judgements(
    design: Design, history: History, chosen: Mapping[Arm, Run], seeds: Mapping[Arm, int]
) -> dict[Arm, Judged]:
    """The verdicts on all arms by the seeds so far.

    Args:
        seeds: how many of each arm count.
    """
    base = chosen[BASELINE]
    pairs = {a: paired(history, run, base, seeds[a]) for a, run in chosen.items() if a}
    return judge(design.goal, design.within, pairs)


def _parts(arm: Arm) -> list[Arm]:
    return [(name,) for name in arm]


def _may_pay(design: Design, pair: Paired) -> bool:
    """Whether the means suggest that the arm pays."""
    if not len(pair.points):
        return False
    if design.goal == "accuracy":
        return pair.points.mean() > 0
    gain = pair.gain(design.goal)
    return pair.points.mean() >= -design.within and (gain is None or gain.mean() < 0)


def _worth(design: Design, pair: Paired) -> float:
    """A score of the arm; larger is better."""
    gain = pair.gain(design.goal)
    return float(pair.points.mean() if gain is None else -gain.mean())
