"""Sampling: Optuna's samplers, which see a bounded number of the sweep's trials.

    all trials that ended   ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○
    visible to TPE            ●     ●   ●       ● ● ● ● ● ● ● ●   + running trials
                              the best of old ones    the last ones

TPE splits the visible trials into at most 25 best ones and the others, and a suggestion takes time
in proportion to their number. If some hundreds of trials include the best of all, their best 25 are
the same as among thousands.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections import deque
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from raybench.results.core import FINISHED
from raybench.results.front import ranks
from raybench.results.log import Record
from raybench.search.journal import STATES
from raybench.search.suggestions import Suggestion, suggestion

RECENT = 128  # trials that ended last
ELITE = 48  # the best of those that ended before


class Sampling:
    """Suggests parameters, and learns the results from the records of the log.

    Args:
        objectives: column -> "max" or "min".
        kind: "tpe" or "random".
    """

    def __init__(self, objectives: dict[str, str], kind: str, seed: int) -> None:
        self.objectives, self._kind, self._seed = objectives, kind, seed
        self.running: dict[int, Suggestion] = {}
        self.enqueued: set[int] = set()
        """Indices in the space's `enqueue` of the entries that were already suggested."""
        self._recent: deque[Suggestion] = deque()
        self._old: list[Suggestion] = []
        self._window = _Window(self)
        optuna.logging.set_verbosity(logging.WARNING)
        self._study = optuna.create_study(
            storage=self._window,
            directions=["maximize" if way == "max" else "minimize" for way in objectives.values()],
        )

    def ask(self, number: int, attempt: int = 0, fixed: dict[str, Any] | None = None) -> Trial:
        """A trial for a space to sample from.

        Args:
            attempt: number of earlier suggestions for this trial number.
            fixed: parameters with given values, which are not suggested.
        """
        self._study.sampler = sampler(self._kind, self._seed, number, attempt)
        self._window.wait(number, fixed or {})
        return self._study.ask()

    def suggested(self, trial: Trial) -> Suggestion:
        """The suggestion for a trial that a space has sampled from."""
        return suggestion(trial.number, trial.params, trial.distributions)

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == "suggested":
            self.running[content["number"]] = Suggestion(
                content["number"],
                content["params"],
                content["distributions"],
                enqueued=content.get("enqueued"),
            )
            return
        running = self.running.get(content.get("number", -1))
        if running is None:
            return
        if kind == "trial" and running.enqueued is not None:  # only once it has a row
            self.enqueued.add(running.enqueued)
        if kind == "epoch" and len(self.objectives) == 1:
            value = content.get(next(iter(self.objectives)))
            if value is not None and math.isfinite(value):
                running.report(content["epoch"], float(value))
        elif kind == "trial" and content.get("status") in FINISHED:
            del self.running[running.number]
            state = STATES[content["status"]]
            complete = state == TrialState.COMPLETE
            values = [float(content[name]) for name in self.objectives] if complete else None
            running.ended(state, values)
            if state != TrialState.FAIL:  # samplers ignore failed trials
                self._remember(running)

    def visible(self) -> list[FrozenTrial]:
        """The trials that a sampler sees."""
        seen = [*self._old, *self._recent, *self.running.values()]
        return sorted((each.frozen() for each in seen), key=lambda trial: trial.number)

    def _remember(self, ended: Suggestion) -> None:
        self._recent.append(ended)
        if len(self._recent) <= RECENT:
            return
        self._old.append(self._recent.popleft())
        if len(self._old) < 2 * ELITE:
            return
        complete = [old for old in self._old if old.values is not None]
        values = [old.values or [] for old in complete]
        order = ranks(values, list(self.objectives.values())) if complete else []
        best = sorted(zip(order, range(len(order)), strict=True))[:ELITE]
        self._old = [complete[place] for _, place in sorted(best, key=lambda pair: pair[1])]


def sampler(kind: str, seed: int, number: int, attempt: int = 0) -> optuna.samplers.BaseSampler:
    """TPE, or `random`, with a separate seed for each trial number and attempt.

    A restart would rewind a single seed of the study, and configurations would repeat.
    """
    text = f"{seed} {number} {attempt}" if attempt else f"{seed} {number}"
    trial_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=trial_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group=True is marked experimental
        return optuna.samplers.TPESampler(
            seed=trial_seed,
            # group=True models the branches of a conditional space separately.
            multivariate=True,
            group=True,
            constant_liar=True,
        )


class _Window(BaseStorage):
    """Optuna's storage of one study: the trial being sampled, and the visible ones."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._asked: FrozenTrial | None = None
        self._directions: list[StudyDirection] = []
        self._attributes: dict[str, Any] = {}

    def wait(self, number: int, fixed: dict[str, Any]) -> None:
        """Makes this the trial that `Study.ask` returns next."""
        self._asked = FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.WAITING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={"fixed_params": fixed},
            intermediate_values={},
        )

    # The study: there is only one.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        self._directions = list(directions)
        return 0

    def delete_study(self, study_id: int) -> None:
        raise RuntimeError("the study of a sweep is written only through its log")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        raise RuntimeError("the study of a sweep is written only through its log")

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._attributes[key] = value

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return "sweep"

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._attributes)

    def get_all_studies(self) -> list[Any]:
        return []

    # Trials: only the one being sampled can be written, the others are read-only.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        raise RuntimeError("the study of a sweep is written only through its log")

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._the(trial_id)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        asked = [] if self._asked is None else [self._asked]
        if states == (TrialState.WAITING,):
            return [trial for trial in asked if trial.state == TrialState.WAITING]
        seen = [t for t in self._sampling.visible() if not asked or t.number != asked[0].number]
        return [trial for trial in [*seen, *asked] if states is None or trial.state in states]

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        trial = self._the(trial_id)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = {**trial.params, param_name: value}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        self._the(trial_id).state = state
        return True

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._the(trial_id).intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._the(trial_id).user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._the(trial_id).system_attrs[key] = value

    def _the(self, trial_id: int) -> FrozenTrial:
        if self._asked is None or self._asked.number != trial_id:
            raise KeyError(f"trial {trial_id} is not being sampled")
        return self._asked
