"""The sweep as an Optuna journal, which `optuna-dashboard` and `optuna.load_study` open.

It is derived from the log, record by record, and raybench never reads it back. A lost, damaged or
changed file is rewritten when the sweep is opened.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from raybench.results import log
from raybench.results.core import FINISHED
from raybench.results.log import Record

STATES = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED, "FAILED": TrialState.FAIL}


class Operation(IntEnum):
    """Codes of the journal's lines, as `optuna.storages.JournalStorage` reads them."""

    CREATE_STUDY = 0
    SET_STUDY_SYSTEM_ATTR = 3
    CREATE_TRIAL = 4
    SET_TRIAL_STATE_VALUES = 6
    SET_TRIAL_INTERMEDIATE_VALUE = 7
    SET_TRIAL_USER_ATTR = 8


class Journal:
    """Keeps lines in memory until `open`, then appends them to the file."""

    def __init__(self, path: Path, name: str, objectives: dict[str, str]) -> None:
        self._path, self._objectives = path, list(objectives)
        self._suggested: dict[int, dict[str, Any]] = {}
        self._ended: set[int] = set()
        self._trials = 0
        self._lines: list[bytes] | None = []
        ways = [
            StudyDirection.MAXIMIZE if way == "max" else StudyDirection.MINIMIZE
            for way in objectives.values()
        ]
        self._write(Operation.CREATE_STUDY, study_name=name, directions=ways)
        names = {"study:metric_names": self._objectives}
        self._write(Operation.SET_STUDY_SYSTEM_ATTR, study_id=0, system_attr=names)

    def open(self) -> None:
        """Makes the file match the records, and opens it for appending."""
        assert self._lines is not None
        whole = b"".join(self._lines)
        if not self._path.exists() or self._path.read_bytes() != whole:
            log.replace(self._path, whole)
        self._lines, self._file = None, self._path.open("ab")

    def close(self) -> None:
        self._file.close()

    def take(self, record: Record) -> None:
        kind, when, content = record
        if kind == "suggested":
            self._suggested[content["number"]] = content
        elif kind == "epoch":
            self._report(content)
        elif kind == "trial" and content["number"] not in self._ended:
            number = content["number"]
            if number >= self._trials:
                self._create(number, when, content)
            if content.get("status") in FINISHED:
                self._ended.add(number)
                self._finish(number, when, content)
        if self._lines is None:
            self._file.flush()

    def _create(self, number: int, when: float, content: dict[str, Any]) -> None:
        """Adds a trial; missing numbers before it become failed trials, as Optuna counts lines."""
        while self._trials <= number:
            suggested = self._suggested.pop(self._trials, None) or _fixed(
                content.get("params", "{}")
            )
            here = self._trials == number
            self._write(
                Operation.CREATE_TRIAL,
                study_id=0,
                datetime_start=_moment(when),
                state=TrialState.RUNNING if here else TrialState.FAIL,
                value=None,
                values=None,
                params=suggested["params"] if here else {},
                distributions=suggested["distributions"] if here else {},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
            self._trials += 1

    def _report(self, content: dict[str, Any]) -> None:
        """Writes the first objective; Optuna stores only one curve for a trial."""
        value, number = content.get(self._objectives[0]), content["number"]
        if value is not None and math.isfinite(value) and number < self._trials:
            self._write(
                Operation.SET_TRIAL_INTERMEDIATE_VALUE,
                trial_id=number,
                step=content["epoch"],
                intermediate_value=float(value),
            )

    def _finish(self, number: int, when: float, content: dict[str, Any]) -> None:
        if content.get("stop_reason"):
            reason = {"stop_reason": content["stop_reason"]}
            self._write(Operation.SET_TRIAL_USER_ATTR, trial_id=number, user_attr=reason)
        complete = content["status"] == "COMPLETE"
        self._write(
            Operation.SET_TRIAL_STATE_VALUES,
            trial_id=number,
            state=STATES[content["status"]],
            values=[float(content[name]) for name in self._objectives] if complete else None,
            datetime_complete=_moment(when),
        )

    def _write(self, operation: Operation, **fields: Any) -> None:
        content = {"op_code": operation, "worker_id": "raybench", **fields}
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        if self._lines is not None:
            self._lines.append(line)
        else:
            self._file.write(line)


def _fixed(params: str) -> dict[str, Any]:
    """For a trial whose distributions are lost: each parameter's value as its only choice."""
    choices = {
        name: json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": [value]}})
        for name, value in json.loads(params).items()
    }
    return {"params": dict.fromkeys(choices, 0), "distributions": choices}


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds")
