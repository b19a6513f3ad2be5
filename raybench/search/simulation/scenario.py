"""Scenario: a folder with a surrogate of learning curves, such as those of YAHPO Gym.

    about.json           order of the inputs and outputs, instance, fidelity, cost, objectives
    config_space.json    ranges, logarithms and conditions of the hyperparameters
    encoding.json        index of each category
    model.onnx           x_cat (N, categories) int32, x_cont (N, numbers) float32 -> (N, outputs)

Source: Pfisterer et al. 2022, arXiv 2109.03670.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import Trial

from raybench.search.simulation.curves import Curve, Params, Problem

VARIABLE = "RAYBENCH_YAHPO"
STEPS = 27  # of a fidelity that is a share: the smallest one of rbv2 is 0.03, about 1/27
LEAST_S = 1e-3  # minimum duration of an epoch; a surrogate may predict negative ones


class Scenario:
    """The surrogate in a folder.

    Raises:
        ValueError: a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        missing = [
            name
            for name in ("about.json", "config_space.json", "encoding.json", "model.onnx")
            if not (folder / name).is_file()
        ]
        if missing:
            raise ValueError(f"{folder} is not a scenario: it lacks {', '.join(missing)}")
        self.folder, self.name = folder, folder.name
        self._about = json.loads((folder / "about.json").read_text())
        self._encoding = json.loads((folder / "encoding.json").read_text())
        self._space = json.loads((folder / "config_space.json").read_text())
        fixed = {self._about["instance"], self._about["fidelity"]["name"]}
        self._constants = self._about.get("constants", {})
        every = {one["name"]: one for one in self._space["hyperparameters"]}
        self._parameters = {
            name: one for name, one in every.items() if name not in fixed | self._constants.keys()
        }
        self.tasks: list[str] = list(every[self._about["instance"]]["choices"])

    @property
    def fidelities(self) -> NDArray[np.float64]:
        """The fidelity of each epoch: (epochs,)."""
        low, high = self._about["fidelity"]["values"]
        if isinstance(low, int):
            return np.arange(low, high + 1, dtype=float)
        return np.linspace(low, high, STEPS)

    def problem(self, task: str) -> Problem:
        """The search on one task. Raises ValueError for an unknown one."""
        if task not in self.tasks:
            raise ValueError(
                f"{self.name} has no task {task}; it has {', '.join(self.tasks[:5])} …"
            )
        objectives = dict(self._about["objectives"])
        return Problem(
            name=f"{self.name} {task}",
            suggest=self.suggest,
            curve=lambda params: self.curve(task, params),
            epochs=len(self.fidelities),
            objectives=objectives,
            costs=frozenset(name for name, way in objectives.items() if way == "min"),
        )

    def suggest(self, trial: Trial) -> Params:
        """The active parameters of a trial; a parameter comes after those it depends on."""
        params: Params = {}
        waiting = dict(self._parameters)
        while waiting:
            ready = [name for name in waiting if not self._parents(name) & waiting.keys()]
            assert ready, "the conditions of the space form a cycle"
            for name in ready:
                if self._active(name, params):
                    params[name] = _suggested(trial, waiting[name])
                del waiting[name]
        return params

    def curve(self, task: str, params: Params) -> Curve:
        """The surrogate's curve of a configuration."""
        given = {**self._constants, **params, self._about["instance"]: task}
        fidelities = self.fidelities
        continuous = np.zeros((len(fidelities), len(self._about["continuous"])), np.float32)
        for place, name in enumerate(self._about["continuous"]):
            is_fidelity = name == self._about["fidelity"]["name"]
            continuous[:, place] = fidelities if is_fidelity else given.get(name, 0)
        codes = [self._code(name, given) for name in self._about["categorical"]]
        categorical = np.tile(np.array(codes, np.int32), (len(fidelities), 1))
        (outputs,) = self._model.run(None, {"x_cat": categorical, "x_cont": continuous})
        metrics = {
            name: np.asarray(outputs[:, place], float)
            for place, name in enumerate(self._about["outputs"])
        }
        for name, least in self._about.get("minimum", {}).items():
            metrics[name] = np.maximum(metrics[name], max(least, LEAST_S))
        cost = metrics[self._about["cost"]]
        # In one training the cost is the time so far; other fidelities train from scratch each.
        of_one_training = isinstance(self._about["fidelity"]["values"][0], int)
        seconds = np.diff(cost, prepend=0.0) if of_one_training else cost
        reported = {name: metrics[name] for name in self._about["objectives"]}
        return Curve(reported, np.maximum(seconds, LEAST_S))

    @cached_property
    def _model(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(self.folder / "model.onnx"), options)

    def _code(self, name: str, given: Mapping[str, Any]) -> int:
        codes = self._encoding.get(name, self._encoding)
        return int(codes[str(given.get(name, "#na#"))])

    def _parents(self, name: str) -> set[str]:
        conditions = [one for one in self._space["conditions"] if one["child"] == name]
        return {parent for one in conditions for parent in _parents_of(one)} & {*self._parameters}

    def _active(self, name: str, params: Params) -> bool:
        given = {**self._constants, **params}
        conditions = [one for one in self._space["conditions"] if one["child"] == name]
        return all(_holds(one, given) for one in conditions)


def folder_of(name: str) -> Path:
    """The folder of a scenario by its name. Raises ValueError with advice."""
    root = os.environ.get(VARIABLE)
    if not root:
        raise ValueError(f"{VARIABLE} is not set: it names the folder that holds the scenarios")
    folder = Path(root) / name
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in Path(root).glob("*/"))) or "nothing"
        raise ValueError(f"{root} holds no scenario {name!r}, but {there}")
    return folder


def _parents_of(condition: Mapping[str, Any]) -> set[str]:
    if "components" in condition:
        return {parent for part in condition["components"] for parent in _parents_of(part)}
    return {condition["parent"]}


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "EQ": lambda value, wanted: value == wanted,
    "NEQ": lambda value, wanted: value != wanted,
    "LT": lambda value, wanted: value < wanted,
    "GT": lambda value, wanted: value > wanted,
    "IN": lambda value, wanted: value in wanted,
}


def _holds(condition: Mapping[str, Any], params: Params) -> bool:
    if "components" in condition:
        combined = all if condition["type"] == "AND" else any
        return combined(_holds(part, params) for part in condition["components"])
    if condition["parent"] not in params:
        return False
    wanted = condition["values"] if condition["type"] == "IN" else condition["value"]
    return _COMPARISONS[condition["type"]](params[condition["parent"]], wanted)


def _suggested(trial: Trial, parameter: Mapping[str, Any]) -> Any:
    name, kind = parameter["name"], parameter["type"]
    if kind == "constant":
        return parameter["value"]
    if kind in ("categorical", "ordinal"):
        return trial.suggest_categorical(name, parameter.get("choices", parameter.get("sequence")))
    suggest = trial.suggest_int if kind == "uniform_int" else trial.suggest_float
    return suggest(name, parameter["lower"], parameter["upper"], log=parameter["log"])
