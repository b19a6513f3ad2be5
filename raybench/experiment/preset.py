"""A family of experiments by name: `trainers.<name>`, or the dotted name of your own module.

The module has `base`, an Experiment, and `objectives`. It may also have `table(trials, epochs,
threshold)`, the report's table, where threshold is an accuracy to reach; `check(experiment)`, which
raises ValueError for errors that are known before training; and `train(experiment, *, resume=None,
store=None)`, a generator of Epochs that replaces `training.trainer.train`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from raybench.experiment import Experiment, nearest


def load(name: str) -> ModuleType:
    """The family's module. Raises ValueError if no family has that name."""
    import trainers

    path = name if "." in name else f"trainers.{name}"
    try:
        if not all(part.isidentifier() for part in path.split(".")):
            raise ModuleNotFoundError(name=path)  # such as a path, which would be a relative import
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the trainer exists, but one of its own imports is missing
        families = [module.name for module in pkgutil.iter_modules(trainers.__path__)]
        raise ValueError(f"no family {name!r}; {nearest(name, families)}") from error


def check(experiment: Experiment) -> None:
    """Raises ValueError if the family's `check` refuses the experiment."""
    module = load(experiment.family)
    if hasattr(module, "check"):
        module.check(experiment)
