"""What decides one training run, except the machine: the way in is `Experiment`."""

from raybench.experiment.experiment import (
    Experiment,
    Parallel,
    Pipeline,
    Recipe,
    checked,
    columns,
    compatible,
    elastic_counts,
    flatten,
    from_json,
    nearest,
    technique_types,
)

__all__ = [
    "Experiment",
    "Parallel",
    "Pipeline",
    "Recipe",
    "checked",
    "columns",
    "compatible",
    "elastic_counts",
    "flatten",
    "from_json",
    "nearest",
    "technique_types",
]
