"""The columns of both tables, derived from the dataclasses: the same whatever a space suggests.

One schema in every file of a table is what makes a folder of them readable: where files differ,
pandas drops a column that the first lacks, and fails on one that is empty there.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raybench import experiment

VERSION = 1
"""Raised when a column changes its meaning or type; a new column may just be added."""

IDENTITY: dict[str, type] = {
    "sweep": str,
    "trial": str,  # names the trial's files under models/
    "number": int,  # Optuna's
}
OUTCOME: dict[str, type] = {
    "status": str,  # RUNNING, COMPLETE, PRUNED or FAILED
    "stop_reason": str,
    "epoch": int,  # the last one reported
    "key": str,  # of the Experiment
    "params": str,  # JSON: what the space suggested, by Optuna's names
}
PROVENANCE: dict[str, type] = {
    "started": str,  # UTC, ISO 8601
    "queue_s": float,  # from the suggestion to the worker's start on it
    "data_sha256": str,
    "commit": str,
    "source_sha256": str,
    "python": str,
    "torch": str,
    "torchvision": str,
    "timm": str,
    "ray": str,
    "optuna": str,
    "cpu": str,
    "cpu_features": str,
    "cpu_count": int,
    "gpu": str,
    "host": str,
    "threads": int,
}
ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def trial_schema(metrics: dict[str, type], about: dict[str, Any]) -> pa.Schema:
    """Schema of the table with a row a trial. `about` goes along in the file's metadata."""
    return _schema(IDENTITY | OUTCOME | experiment.columns() | metrics | PROVENANCE, about)


def epoch_schema(metrics: dict[str, type], about: dict[str, Any]) -> pa.Schema:
    """Schema of the table with a row a trial and epoch."""
    return _schema(IDENTITY | {"epoch": int} | metrics, about)


def started(
    sweep: str, number: int, described: experiment.Experiment, params: dict[str, Any]
) -> dict[str, Any]:
    """The row of a trial that has just started."""
    return {
        "sweep": sweep,
        "trial": f"{sweep}-{number:04d}",
        "number": number,
        "status": "RUNNING",
        "key": described.key(),
        "params": json.dumps(params),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **experiment.flatten(described),
    }


def _schema(columns: dict[str, type], about: dict[str, Any]) -> pa.Schema:
    metadata = {"raybench": json.dumps({"schema": VERSION, **about})}
    fields = [pa.field(name, ARROW[kind]) for name, kind in columns.items()]
    return pa.schema(fields, metadata=metadata)


def about(schema: pa.Schema) -> dict[str, Any]:
    """What `trial_schema` was given, and the schema's version. Raises ValueError without it."""
    said = (schema.metadata or {}).get(b"raybench")
    if said is None:
        raise ValueError("this Parquet file was not written by raybench")
    return dict(json.loads(said))
