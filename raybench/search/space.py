"""Search spaces: loads a file under `search_spaces/` and checks it before anything starts.

A space is a function of an `optuna.Trial` that returns an Experiment. Its file also has a dict
`objectives` (column -> "max" or "min"), and optionally a list `enqueue` of parameters to try first
and a dict `constraints` (column -> "<= NUMBER" or ">= NUMBER").
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna

from raybench import data, models
from raybench.experiment import Experiment, checked, compatible, nearest, preset, tables
from raybench.models.check import check as check_model
from raybench.results.limits import limits
from raybench.search.overrides import Overrides
from raybench.training import trainer

DRY_RUNS = 64  # random trials; enough to enter every branch of a space with a few branches


@dataclass(frozen=True)
class Space:
    """A checked search space."""

    path: Path
    question: str
    family: str
    objectives: dict[str, str]
    enqueue: tuple[dict[str, Any], ...]
    fingerprint: str
    """Changes with the code of the file, but not with comments and docstrings; also with the source
    of a model by import path."""
    sample: Callable[[optuna.trial.BaseTrial], Experiment]
    examples: tuple[Experiment, ...]
    """The experiments of the dry run: `enqueue`, then random ones."""
    constraints: dict[str, str] = field(default_factory=dict)
    """Column -> "<= NUMBER" or ">= NUMBER"."""

    @property
    def workers(self) -> int:
        """Workers of the largest trial; a slot gets a new group if its next trial has fewer."""
        return max(example.parallel.workers for example in self.examples)

    @property
    def stages(self) -> int:
        """Largest number of stages in the dry run: every slot holds this many CPUs."""
        return max(example.pipeline.stages for example in self.examples)


def load(path: Path, overrides: Overrides) -> Space:
    """The space in a file, after a dry run with random trials.

    Raises:
        ValueError: something is wrong with the file; the message is one line with advice.
    """
    module = _executed(path)
    for name in ("space", "objectives"):
        if not hasattr(module, name):
            raise ValueError(f"{path} defines no `{name}`; a search space has both")
    code = _code(ast.parse(path.read_text()))
    return _checked(path, module.space, module, (module.__doc__ or "").strip(), code, overrides)


def of_function(
    function: Callable[[optuna.Trial], Experiment],
    objectives: dict[str, str],
    enqueue: Sequence[dict[str, Any]],
    name: str,
    overrides: Overrides,
    constraints: Mapping[str, str] | None = None,
) -> Space:
    """The same for a function, such as one in a notebook's cell.

    Raises:
        ValueError: something is wrong with it, or its source is not available.
    """
    try:
        code = _code(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"the source of the space {name} is not available ({error}), so a sweep cannot check "
            "that it is the same; write it to a file"
        ) from error
    declared = SimpleNamespace(
        objectives=objectives, enqueue=enqueue, constraints=dict(constraints or {})
    )
    question = inspect.getdoc(function) or ""
    return _checked(Path(name), function, declared, question, code, overrides)


def _checked(
    path: Path,
    function: Callable[[Any], Experiment],
    declared: Any,
    question: str,
    code: str,
    overrides: Overrides,
) -> Space:
    objectives, enqueue = _declared(path, declared)

    def sample(trial: optuna.trial.BaseTrial) -> Experiment:
        experiment = function(trial)
        if not isinstance(experiment, Experiment):
            kind = type(experiment).__name__
            raise ValueError(f"space(trial) returned {kind}, not an Experiment")
        return compatible(models.with_source(checked(overrides.apply(checked(experiment)))))

    examples = _dry_run(path, sample, enqueue)
    name = _family(path, examples)
    constraints = getattr(declared, "constraints", {})
    _check_columns(path, objectives, constraints)
    _check_runnable(path, examples)
    sources = "".join(sorted({example.model_source for example in examples}))
    return Space(
        path=path,
        question=question,
        family=name,
        objectives=objectives,
        enqueue=enqueue,
        constraints=dict(constraints),
        fingerprint=hashlib.sha256((code + sources).encode()).hexdigest()[:16],
        sample=sample,
        examples=examples,
    )


def _executed(path: Path) -> Any:
    if path.is_dir():
        files = ", ".join(sorted(str(file) for file in path.glob("*.py"))[:3]) or "a .py file"
        raise ValueError(f"{path} is a folder: name a file in it, such as {files}")
    if path.is_file() and path.suffix != ".py":
        raise ValueError(f"{path} is not a Python file: a search space is a .py file")
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.py"))]
        advice = nearest(str(path), siblings) if siblings else "there are no .py files next to it"
        raise ValueError(f"{path} does not exist; {advice}")
    spec = importlib.util.spec_from_file_location(f"search_space_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look up their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(_explained(path, error)) from error
    return module


def _declared(path: Path, module: Any) -> tuple[dict[str, str], tuple[dict[str, Any], ...]]:
    objectives, enqueue = module.objectives, getattr(module, "enqueue", ())
    if not isinstance(objectives, dict) or not objectives:
        raise ValueError(f'{path}: objectives is {objectives}; use e.g. {{"accuracy": "max"}}')
    if not isinstance(enqueue, list | tuple) or not all(isinstance(e, dict) for e in enqueue):
        raise ValueError(f'{path}: enqueue is a list of parameters, e.g. [{{"lr": 0.1}}, …]')
    return dict(objectives), tuple(enqueue)


def _dry_run(
    path: Path,
    sample: Callable[[optuna.trial.BaseTrial], Experiment],
    enqueue: tuple[dict[str, Any], ...],
) -> tuple[Experiment, ...]:
    """Samples Experiments at random."""
    examples: list[Experiment] = []
    suggested: set[str] = set()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            for params in enqueue:
                study.enqueue_trial(params)
            for _ in range(len(enqueue) + DRY_RUNS):
                trial = study.ask()
                with contextlib.suppress(optuna.TrialPruned):
                    examples.append(sample(trial))
                suggested |= trial.params.keys()
    except Exception as error:
        raise ValueError(_explained(path, error)) from error
    finally:
        optuna.logging.set_verbosity(before)
    if not examples:
        raise ValueError(f"{path}: space(trial) pruned each of {DRY_RUNS} random trials")
    for name in {name for params in enqueue for name in params} - suggested:
        advice = nearest(name, list(suggested))
        raise ValueError(f"{path}: enqueue sets {name!r}, which is never suggested; {advice}")
    return tuple(examples)


def _family(path: Path, examples: tuple[Experiment, ...]) -> str:
    names = {example.family for example in examples}
    if len(names) > 1:
        raise ValueError(f"{path} mixes the families {sorted(names)}; a sweep has one")
    name = names.pop()
    try:
        preset.load(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return name


def _check_runnable(path: Path, examples: tuple[Experiment, ...]) -> None:
    """Opens the data; checks every model once, and once with each set of techniques."""
    built: set[tuple[object, ...]] = set()
    for example in examples:
        try:
            classes = data.load(example).classes
            if (example.model, example.image_size) not in built:
                check_model(example.model, classes=classes, image_size=example.image_size)
                built.add((example.model, example.image_size))
            names = [name for name, _ in example.techniques()]
            stages = (example.pipeline.stages, example.pipeline.cuts)
            kind = (example.model, example.image_size, *stages, *names)
            if kind not in built:
                trainer.check(example)
                built.add(kind)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _check_columns(path: Path, objectives: dict[str, str], constraints: Any) -> None:
    if not isinstance(constraints, dict):
        raise ValueError(
            f'{path}: constraints is {constraints}; use e.g. {{"model_bytes": "<= 100000"}}'
        )
    try:
        limits(constraints)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    columns = tables.metric_columns().items()
    numeric = [name for name, column in columns if column.type in (int, float)]
    wanted = [*(("objective", n) for n in objectives), *(("constraint", n) for n in constraints)]
    for kind, objective in wanted:
        if "test_" in objective:
            other = "validation_loss" if objective == "test_loss" else "accuracy"
            raise ValueError(
                f"{path}: {kind} {objective!r} would choose by the test split; "
                f"use {other!r}, which is measured on the validation split"
            )
        if objective not in numeric:
            advice = nearest(objective, numeric)
            raise ValueError(f"{path}: a run reports no {kind} {objective!r}; {advice}")
    for objective, direction in objectives.items():
        if direction not in ("max", "min"):
            raise ValueError(f'{path}: objective {objective!r} is {direction!r}, not "max"/"min"')


def _explained(path: Path, error: Exception) -> str:
    """One line: the file, its line, the error, and the nearest valid name."""
    code = str(path.absolute())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == code]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    where = f"{path}:{line}" if line else str(path)
    unknown = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if unknown:
        kind, name = unknown.groups()
        return f"{where}: {kind} has no field {name!r}; {nearest(name, _field_names(kind))}"
    message = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return f"{where}: {message}"
    return f"{where}: {type(error).__name__}: {message}"


def _field_names(kind: str) -> list[str]:
    """Field names of the dataclass called `kind`, wherever it was imported from."""
    for module in list(sys.modules.values()):
        candidate = getattr(module, kind, None)
        if isinstance(candidate, type) and is_dataclass(candidate):
            return [one.name for one in fields(candidate)]
    return []


def _code(tree: ast.Module) -> str:
    """The program without its docstrings (an AST holds no comments)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            described = ast.get_docstring(node) is not None
            node.body = node.body[described:]
    return ast.dump(tree)
