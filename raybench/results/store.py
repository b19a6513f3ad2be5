"""Store: the one writer of a sweep's tables, which any kill leaves whole.

    put ──▶ .state/tail.jsonl ──(at most once a second)──▶ trials/trials.parquet
            a line a row, fsync                            epochs/epochs-00000.parquet, …

A row is safe once its line is on disk. A snapshot is written elsewhere, fsynced and renamed over
the old one, so a reader never sees half a table; then the tail starts anew. A kill between the
two only leaves rows in both, and opening puts the tail's over the snapshot's.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.results import schema

Row = dict[str, Any]

PART_ROWS = 50_000  # of the epochs table; a full part is never written again
SNAPSHOT_EVERY_S = 1.0
SNAPSHOT_SHARE = 0.05  # a large table may take this share of the driver's time


class Store:
    """The tables of one sweep, open for writing by one process.

    Raises:
        ValueError: the folder's tables have another schema.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, trials: pa.Schema, epochs: pa.Schema) -> None:
        self.folder = folder
        self._schemas = {"trials": trials, "epochs": epochs}
        self.trials: dict[int, Row] = {}
        self._epochs: dict[tuple[int, int], Row] = {}  # of the part that is still open
        self._sealed: set[tuple[int, int]] = set()
        self._part = 0
        for name in ("trials", "epochs", ".state"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._read_snapshots()
        self._tail_path = folder / ".state" / "tail.jsonl"
        self._replay_tail()
        self._tail = self._tail_path.open("a")
        self._next_snapshot = 0.0
        self.snapshot()

    def put_trial(self, row: Row) -> None:
        """Sets the row of trial `row["number"]`; it is on disk when this returns.

        Raises:
            ValueError: a column is not declared or has another type; nothing is written.
        """
        self.validate("trials", row)
        self.trials[row["number"]] = row
        self._append("trials", row)

    def put_epoch(self, row: Row) -> None:
        """Sets the row of a trial's epoch; it is on disk when this returns.

        Raises:
            ValueError: a column is not declared or has another type; nothing is written.
        """
        self.validate("epochs", row)
        key = (row["number"], row["epoch"])
        if key not in self._sealed:  # a repeated epoch of a resumed trial
            self._epochs[key] = row
            self._append("epochs", row)

    def validate(self, table: str, row: Row) -> None:
        """Raises ValueError where a row does not fit the table, `trials` or `epochs`."""
        schema.validate(self._schemas[table], row)

    def epoch_rows(self) -> list[Row]:
        """All rows of the epochs table, oldest first."""
        sealed = [
            row
            for part in range(self._part)
            for row in pq.read_table(self._part_path(part)).to_pylist()
        ]
        return sealed + list(self._epochs.values())

    def snapshot(self) -> None:
        """Writes both tables and empties the tail."""
        began = time.monotonic()
        self._write("trials", list(self.trials.values()), self.folder / "trials/trials.parquet")
        self._write("epochs", list(self._epochs.values()), self._part_path(self._part))
        if len(self._epochs) >= PART_ROWS:
            self._sealed |= self._epochs.keys()
            self._epochs = {}
            self._part += 1
        self._tail.close()
        self._tail = self._tail_path.open("w")
        cost = time.monotonic() - began
        self._next_snapshot = time.monotonic() + max(SNAPSHOT_EVERY_S, cost / SNAPSHOT_SHARE)

    def snapshot_if_due(self) -> None:
        if self._tail.tell() and time.monotonic() >= self._next_snapshot:
            self.snapshot()

    def close(self) -> None:
        self.snapshot()
        self._tail.close()

    def _part_path(self, part: int) -> Path:
        return self.folder / "epochs" / f"epochs-{part:05d}.parquet"

    def _append(self, table: str, row: Row) -> None:
        self._tail.write(json.dumps([table, row]) + "\n")
        self._tail.flush()
        os.fsync(self._tail.fileno())

    def _write(self, table: str, rows: list[Row], path: Path) -> None:
        partial = self.folder / ".state" / f"{table}.partial"
        names = self._schemas[table].names
        clean = [{name: _finite(row.get(name)) for name in names} for row in rows]
        content = pa.Table.from_pylist(clean, schema=self._schemas[table])
        with partial.open("wb") as file:
            pq.write_table(content, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)

    def _read_snapshots(self) -> None:
        for path in [*self.folder.glob("trials/*"), *self.folder.glob("epochs/*")]:
            expected = self._schemas[path.parent.name]
            try:
                found = pq.read_schema(path)
                version = schema.about(found)["schema"]
            except (pa.ArrowInvalid, ValueError) as error:
                raise ValueError(f"{path} does not belong here ({error}); move it away") from error
            if version != schema.VERSION or not found.equals(expected):
                raise ValueError(
                    f"{path} has an older or other schema (version {version}, this is "
                    f"{schema.VERSION}); take another --name, or move {self.folder} away"
                )
        trials = self.folder / "trials/trials.parquet"
        if trials.exists():
            self.trials = {row["number"]: row for row in pq.read_table(trials).to_pylist()}
        parts = sorted(self.folder.glob("epochs/epochs-*.parquet"))
        self._part = max(0, len(parts) - 1)
        for part in range(self._part):
            keys = pq.read_table(self._part_path(part), columns=["number", "epoch"]).to_pylist()
            self._sealed |= {(row["number"], row["epoch"]) for row in keys}
        if parts:
            rows = pq.read_table(parts[-1]).to_pylist()
            self._epochs = {(row["number"], row["epoch"]): row for row in rows}

    def _replay_tail(self) -> None:
        if not self._tail_path.exists():
            return
        repair_tail(self._tail_path)
        for line in self._tail_path.read_text().splitlines():
            table, row = json.loads(line)
            if table == "trials":
                self.trials[row["number"]] = row
            elif (row["number"], row["epoch"]) not in self._sealed:
                self._epochs[row["number"], row["epoch"]] = row


def repair_tail(path: Path) -> None:
    """Cuts a file of lines after its last newline.

    A kill in the middle of a write leaves half a line, and the next write would be glued onto
    it: neither our tail nor an Optuna journal could be read again.
    """
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    """NaN and infinity are no values in a table: they would win or lose every comparison."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
