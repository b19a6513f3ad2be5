"""Reading a sweep's tables back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.arguments.nearest import nearest
from raybench.results import log, recovery, schema
from raybench.results.front import front
from raybench.results.remote.address import is_remote


@dataclass(frozen=True)
class Results:
    """A sweep's pandas tables, and the description from its files."""

    trials: pd.DataFrame
    epochs: pd.DataFrame
    about: dict[str, Any]

    @property
    def objectives(self) -> dict[str, str]:
        return dict(self.about["objectives"])

    @property
    def constraints(self) -> dict[str, str]:
        """Column -> "<= NUMBER" or ">= NUMBER"; empty if the space has none."""
        return dict((self.about.get("identity") or {}).get("constraints") or {})

    def only(self, number: int) -> Results:
        """The results of one trial."""
        trials, epochs = self.trials, self.epochs
        of_epochs = epochs[epochs["number"] == number] if len(epochs) else epochs
        return Results(trials[trials["number"] == number], of_epochs, self.about)

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that ran to their last epoch."""
        return self.trials[self.trials["status"] == "COMPLETE"]

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front: the complete trials that no other one dominates."""
        return front(self.trials, self.objectives, self.constraints)


def is_sweep(folder: Path) -> bool:
    """Whether the folder is that of a sweep: it has a log or tables."""
    return log.path_in(folder).exists() or (folder / "trials").exists()


def read(folder: Path | str) -> Results:
    """The tables of the sweep in `folder`, such as `results/pruning`; it may still be running.

    Args:
        folder: a path, or an address such as s3://bucket/runs/pruning.

    Raises:
        ValueError: there are no tables, raybench did not write them, or one is damaged.
        OSError: the store at the address refuses access or does not answer.
    """
    if is_remote(str(folder)):
        # Imported here, because folders need no file systems.
        from raybench.results.remote.fetched import tables

        with tables(str(folder)) as copy:
            return read(copy)
    folder = Path(folder)
    path = folder / "trials" / "trials.parquet"
    if not path.exists():
        raise ValueError(_missing(folder, path))
    parts = sorted((folder / "epochs").glob("*.parquet"))
    trials, *epochs = (_read(folder, file) for file in (path, *parts))
    try:
        about = schema.about(trials.schema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    together = _frame(pa.concat_tables(epochs) if epochs else pa.table({}))
    if len(parts) > 1:  # while a part is sealed, its other rows are in the next one too
        together = together.drop_duplicates(["number", "epoch"], ignore_index=True)
    return Results(_frame(trials), together, about)


def _missing(folder: Path, path: Path) -> str:
    if folder.is_file():
        return f"{folder} is a file: name a sweep's folder, such as results/pruning"
    above = folder.parent
    sweeps = [str(above / one.name) for one in above.iterdir()] if above.is_dir() else []
    advice = "" if folder.exists() else nearest(str(folder), sweeps)
    text = f"{folder} holds no results: there is no {path}"
    return f"{text}; {advice}" if advice.startswith("did") else text


def _read(folder: Path, path: Path) -> pa.Table:
    """A file's table; its checksums are verified."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except recovery.BROKEN as error:
        advice = ""
        if log.path_in(folder).exists():
            advice = f". Restore it with `python -m raybench.report {folder} --rebuild`"
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}){advice}") from error


def _frame(table: pa.Table) -> pd.DataFrame:
    """The table with pandas' nullable types, as with `dtype_backend="numpy_nullable"`."""
    types = {
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.string(): pd.StringDtype(),
    }
    return table.to_pandas(types_mapper=types.get)
