"""The rows that a part writes: one for each measured value, in a Parquet file of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.training import measure


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


MACHINE = ("gpu", "cpu", "commit", "torch")

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("part", "subject", "side", "figure")),
        ("value", pa.float64()),
        ("round", pa.int64()),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in MACHINE),
    ]
)


def path_of(folder: Path, part: str) -> Path:
    return folder / f"gpu-{part}.parquet"


def write(folder: Path, part: str, rows: Iterable[Row]) -> Path:
    """Writes a part's rows with the machine; whole or not at all, so that each call may be the
    last one before the time is up."""
    about = {**measure.machine(), **measure.provenance()}
    machine = {name: str(about[name]) for name in MACHINE}
    table = pa.Table.from_pylist([asdict(row) | machine for row in rows], schema=SCHEMA)
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, part)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
    return path


def read(folder: Path) -> list[dict[str, object]]:
    """The rows of all parts in the folder."""
    files = sorted(folder.glob("gpu-*.parquet"))
    rows: list[dict[str, object]] = []
    for file in files:
        rows += pq.read_table(file).to_pylist()
    return rows
