"""The schema of a Parquet table, from declared columns, and the first row of a trial.

Every file of a table has the same schema, so that pandas can read a folder of them: if files
differ, it drops a column that is missing in the first file, and fails on one that is empty there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raybench.results.column import Column

VERSION = 3
"""Increased when the set of columns, or the meaning or type of a column, changes."""

ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
TYPES = {arrow: kind for kind, arrow in ARROW.items()}


def schema_of(columns: Mapping[str, Column], about: Mapping[str, Any]) -> pa.Schema:
    """The Arrow schema, with the description and unit of each field, and `about` for the file."""
    fields = [
        pa.field(
            name,
            ARROW[column.type],
            metadata={"description": column.text, "unit": column.unit},
        )
        for name, column in columns.items()
    ]
    metadata = {"raybench": json.dumps({"schema": VERSION, **about})}
    return pa.schema(fields, metadata=metadata)


def about(schema: pa.Schema) -> dict[str, Any]:
    """The `about` of `schema_of` and the schema's version. Raises ValueError if missing."""
    text = (schema.metadata or {}).get(b"raybench")
    if text is None:
        raise ValueError("this Parquet file was not written by raybench")
    return dict(json.loads(text))


def validate(schema: pa.Schema, row: Mapping[str, Any]) -> None:
    """Raises ValueError for an undeclared column, or a value of another type.

    Every column allows None, and every float column allows whole numbers.
    """
    for name, value in row.items():
        index = schema.get_field_index(name)
        if index < 0:
            close = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? Else declare it" if close else "declare it"
            raise ValueError(
                f"no column {name!r} is declared; {hint} in the `columns` of the technique that "
                "reports it, or leave it out"
            )
        kind = TYPES[schema.field(index).type]
        allowed = (int, float) if kind is float else kind
        # bool is a subclass of int, but not a number in a table.
        is_of_kind = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
        if value is None or is_of_kind:
            continue
        raise ValueError(
            f"column {name!r} is declared as {kind.__name__}, but {value!r} is "
            f"{type(value).__name__}; report it as {kind.__name__}, or change its declaration"
        )


def started(
    sweep: str, number: int, key: str | None, inputs: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a trial that has just started.

    Args:
        key: key of the Experiment; None if the space returned no Experiment.
        inputs: the Experiment as columns.
        params: the parameters that the space suggested.
    """
    return {
        "sweep": sweep,
        "trial": f"{sweep}-{number:04d}",
        "number": number,
        "status": "RUNNING",
        "key": key,
        "params": json.dumps(params),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **inputs,
    }
