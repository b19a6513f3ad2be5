"""Rebuilds a sweep's derived files from its log: the Parquet tables and Optuna's journal."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from raybench.experiment import tables
from raybench.results import recovery
from raybench.results.store import Store
from raybench.search.journal import Journal


def rebuild(folder: Path) -> list[str]:
    """Rewrites the tables and the journal of the sweep in `folder`; returns a report, line by line.

    Raises:
        ValueError: neither a log nor a table can be read, or another process has the sweep open.
    """
    about = recovery.about(folder)
    if about is None:
        raise ValueError(f"{folder} holds no sweep: there is neither a log nor a table")
    journal = Journal(folder / ".state" / "study.journal", about["sweep"], about["objectives"])
    try:
        with FileLock(folder / ".state" / "lock", timeout=0):
            store = Store(folder, *tables.schemas(about), [journal.take], anew=True)
            journal.open()
            store.close()
            journal.close()
    except Timeout as error:
        raise ValueError(f"another process is running the sweep in {folder}") from error
    return [*store.remarks, f"rewrote {len(store.trials)} trials of {folder}"]
