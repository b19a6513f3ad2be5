"""Everything that determines one training run, except the machine; start with `Experiment`."""

from raybench.arguments.nearest import nearest
from raybench.experiment.compatible import compatible, conflicts, elastic_counts
from raybench.experiment.experiment import (
    Experiment,
    checked,
    columns,
    flatten,
    from_json,
    technique_types,
)
from raybench.experiment.parallel import Parallel
from raybench.experiment.pipeline import Pipeline
from raybench.experiment.recipe import Recipe

__all__ = [
    "Experiment",
    "Parallel",
    "Pipeline",
    "Recipe",
    "checked",
    "columns",
    "compatible",
    "conflicts",
    "elastic_counts",
    "flatten",
    "from_json",
    "nearest",
    "technique_types",
]
