"""Window: Optuna's storage of one study: the trial being sampled, and the visible ones."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Window(BaseStorage):
    """Optuna's storage of one study: the trial being sampled, and the visible ones."""

    def __init__(self, visible: Callable[[], list[FrozenTrial]]) -> None:
        self._visible = visible
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
        seen = [t for t in self._visible() if not asked or t.number != asked[0].number]
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
