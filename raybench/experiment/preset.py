"""A family of experiments by name: `trainers.<name>`, or the dotted name of a module of your own.

The module has `base`, an Experiment, and `objectives`; and, where it has them, `table(trials,
epochs, threshold)`: the report's table, threshold being an accuracy to reach; `check(experiment)`,
which raises ValueError for what can be told before anything starts; and `train(experiment, *,
resume=None, store=None)`, a generator of Epochs that is used in place of `training.trainer.train`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from raybench.experiment import Experiment, nearest


def load(name: str) -> ModuleType:
    """The family's module. Raises ValueError where there is none of that name."""
    import trainers

    path = name if "." in name else f"trainers.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise  # the trainer exists, and misses a package of its own
        known = [module.name for module in pkgutil.iter_modules(trainers.__path__)]
        raise ValueError(f"no family {name!r}; {nearest(name, known)}") from error


def check(experiment: Experiment) -> None:
    """Raises ValueError where the family knows that it cannot train this."""
    module = load(experiment.family)
    if hasattr(module, "check"):
        module.check(experiment)
