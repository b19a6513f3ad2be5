"""Rows of a sweep that nobody ran, its tables, and what of them lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybench.experiment import flatten, tables
from raybench.results.rows import Row
from raybench.results.store import Store
from trainers.pruning import base

ABOUT = {"family": "pruning", "sweep": "s", "objectives": {"accuracy": "max", "loss": "min"}}


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


def schemas() -> tuple[pa.Schema, pa.Schema]:
    return tables.schemas(ABOUT)


def opened(folder: Path) -> Store:
    return Store(folder, *schemas())


def trial_row(number: int, **values: object) -> Row:
    identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
    return {**identity, "status": "RUNNING", **flatten(base), **values}


def epoch_row(number: int, epoch: int, **values: object) -> Row:
    return {"sweep": "s", "trial": f"s-{number:04d}", "number": number, "epoch": epoch, **values}


def trials_on_disk(folder: Path) -> dict[int, Row]:
    table = pq.read_table(folder / "trials").to_pylist()
    assert len({row["number"] for row in table}) == len(table)
    return {row["number"]: row for row in table}


def epochs_on_disk(folder: Path) -> list[tuple[int, int]]:
    frame = pd.read_parquet(folder / "epochs")
    return sorted(zip(frame["number"], frame["epoch"], strict=True))
