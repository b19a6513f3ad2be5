"""The Optuna study of a sweep: an ordinary journal file, which optuna-dashboard opens."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from raybench.results.store import repair_tail


def open_study(
    journal: Path, name: str, objectives: dict[str, str], enqueue: Iterable[dict[str, Any]]
) -> optuna.Study:
    """The study in `journal`, made where there is none, with `enqueue` waiting in it once.

    Call it only as the one process that works on the journal.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    if journal.exists():
        repair_tail(journal)
    # A lock left by a killed driver would be waited for.
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink()
    directions = [
        StudyDirection.MAXIMIZE if way == "max" else StudyDirection.MINIMIZE
        for way in objectives.values()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            study_name=name,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            directions=directions,
            load_if_exists=True,
        )
    known = [t.system_attrs.get("fixed_params") for t in study.get_trials(deepcopy=False)]
    for params in enqueue:
        if params not in known:
            study.enqueue_trial(params)
    return study


def sampler(kind: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """TPE, or `random`, with a seed of its own for each trial number.

    One seed for the study would be rewound by a restart, which then repeats configurations.
    """
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group=True is marked experimental
        return optuna.samplers.TPESampler(
            seed=own,
            # The branches of a conditional space are modelled one by one.
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def tell(
    study: optuna.Study, trial: Trial, row: dict[str, Any], objectives: dict[str, str]
) -> None:
    """Tells the study a trial's outcome as its row has it: COMPLETE, PRUNED or FAILED."""
    if row["stop_reason"]:
        trial.set_user_attr("stop_reason", row["stop_reason"])
    if row["status"] == "COMPLETE":
        study.tell(trial, [float(row[name]) for name in objectives])
    elif row["status"] == "PRUNED":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)
