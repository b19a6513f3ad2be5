"""The rows that a part writes: one per measured value, in one Parquet file per part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.training import measure

SECONDS, FAILED = "seconds", "failed"
"""Figures of a whole subject: its seconds, or its failure, with the reason as the note."""


@dataclass(frozen=True)
class Row:
    """One value: `round` numbers repeated measurements, or is an epoch; `side` names what was
    measured, such as dense or monarch."""

    part: str
    subject: str
    side: str
    figure: str
    value: float
    round: int = 0
    seed: int = 0
    note: str = ""


MACHINE = ("gpu", "cpu", "commit", "torch")

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("part", "subject", "side", "figure")),
        ("value", pa.float64()),
        ("round", pa.int64()),
        ("seed", pa.int64()),
        ("note", pa.string()),
        *((name, pa.string()) for name in MACHINE),
    ]
)


def path_of(folder: Path, part: str) -> Path:
    return folder / f"gpu-{part}.parquet"


def stamped(row: Row) -> dict[str, Any]:
    """The row with the columns of the machine that measured it."""
    about = {**measure.machine(), **measure.provenance()}
    return asdict(row) | {name: str(about[name]) for name in MACHINE}


def write(folder: Path, part: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes a part's stamped rows atomically, because the process may be killed when the time
    is up."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, part)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
    return path


def read(folder: Path, part: str = "*") -> list[dict[str, Any]]:
    """The rows of a part, or of all parts, in the folder."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob(f"gpu-{part}.parquet")):
        rows += pq.read_table(file, schema=SCHEMA).to_pylist()
    return rows
