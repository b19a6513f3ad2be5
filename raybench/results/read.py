"""Reading a sweep's tables back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.results import schema


@dataclass(frozen=True)
class Results:
    """A sweep as pandas tables, and what its files say about it."""

    trials: pd.DataFrame
    epochs: pd.DataFrame
    about: dict[str, Any]

    @property
    def objectives(self) -> dict[str, str]:
        return dict(self.about["objectives"])


def read(folder: Path) -> Results:
    """The tables of the sweep in `folder`, at any moment of its run.

    Raises:
        ValueError: there are no tables, or raybench did not write them.
    """
    path = folder / "trials" / "trials.parquet"
    if not path.exists():
        raise ValueError(f"{folder} holds no results: there is no {path}")
    try:
        about = schema.about(pq.read_schema(path))
        trials = pd.read_parquet(folder / "trials", dtype_backend="numpy_nullable")
        epochs = pd.read_parquet(folder / "epochs", dtype_backend="numpy_nullable")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{folder} holds a broken Parquet file: {error}") from error
    return Results(trials, epochs, about)
