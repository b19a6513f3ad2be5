"""The super model: the pruning preset, with the latency of the shipped graph.

Reference: a student project put augmentation, pruning, mixed precision, quantization and
synchronous training together and reports a file 1.8 times smaller; it gives no latency.
"""

from __future__ import annotations

from dataclasses import replace

from raybench.reports.tables.super_model import table as table  # of the report
from trainers import pruning

base = replace(
    pruning.base,
    family="super_model",
    recipe=replace(pruning.base.recipe, renew_norms=32),
    latency=True,
)

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}
