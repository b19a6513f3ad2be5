"""Overrides: what the command line changes in every Experiment of a space."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raybench.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Values from the command line for every Experiment; None keeps the space's value."""

    epochs: int | None = None
    data: str | None = None
    model: str | None = None
    subset: float | None = None
    workers: int | None = None
    seed: int = 0

    def apply(self, experiment: Experiment) -> Experiment:
        recipe, parallel = experiment.recipe, experiment.parallel
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs)
        if self.workers is not None:
            parallel = replace(parallel, workers=self.workers)
        if self.model is not None:
            experiment = replace(experiment, model=self.model, model_source="")
        return replace(
            experiment,
            data=experiment.data if self.data is None else self.data,
            subset=experiment.subset if self.subset is None else self.subset,
            seed=experiment.seed + self.seed,
            recipe=recipe,
            parallel=parallel,
        )
