"""Which pays: the trials of `raybench.compare`, a baseline and each technique in a few settings."""

from __future__ import annotations

from raybench.experiment import Experiment
from raybench.reports.tables.which_pays import table as table  # of the report
from raybench.verdict.base import FAMILY, WITH_BATCH_NORM

base = Experiment(family=FAMILY, model="resnet20", recipe=WITH_BATCH_NORM)

objectives = {"accuracy": "max"}
