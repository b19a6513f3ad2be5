"""A family of experiments by name: `trainers.<name>`, or the dotted name of a module of your own.

The module has `base`, an Experiment, and `objectives`; and, where it has them, `table(trials,
epochs, threshold)`: the report's table, threshold being an accuracy to reach; `check(experiment)`,
which raises ValueError for what can be told before anything starts; `train(experiment, *,
resume=None, store=None)`, a generator of Epochs that is used in place of `training.trainer.train`;
and `columns`, the types of the metrics that such a `train` adds.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from raybench.experiment import Experiment, nearest, technique_types
from raybench.training.loop import METRICS

OF_ANY: dict[str, type] = {
    "distillation_loss": float,  # what a teacher adds to the loss, before its weight
    "sparsity": float,  # zeros among the weights of convolutions and linear layers, of the file
    "channels": float,  # share that the cut of channels has left
    "weight_bits": float,  # mean over the quantized weights; 32 until they are
    "bits_by_layer": str,  # "8 18x4 8": one layer of 8 bits, 18 of 4, one of 8
    "structured_layers": int,  # layers that are Monarch or low-rank now
    "factors": str,  # how many layers have which factors
    "load_cv": float,  # coefficient of variation of the experts' loads, over the epoch's steps
    "dead_experts": int,  # those with under a hundredth of an even load, over all mixtures
    "dropped_share": float,  # assignments that found their expert full
    "router_entropy": float,  # nats; log(experts) is a router that knows nothing
    "balance_loss": float,  # 1 for an even load; before its weight
    "z_loss": float,  # before its weight
    "ema_distance": float,  # of the averaged weights from the trained ones, over their length
}
"""Metrics of what any family's model can have, null where it has not."""


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


def metrics(name: str) -> dict[str, type]:
    """The metrics that the family reports, with their types."""
    coverage = {f"{technique}_coverage": float for technique in technique_types()}
    return METRICS | OF_ANY | coverage | getattr(load(name), "columns", {})


def check(experiment: Experiment) -> None:
    """Raises ValueError where the family knows that it cannot train this."""
    module = load(experiment.family)
    if hasattr(module, "check"):
        module.check(experiment)
