"""Store: the single writer of a sweep's results, which survive any kill.

    put ──▶ .state/log ──▶ listeners: the sweep's state in memory
                │
                ╰──(at most once a second)──▶ trials/trials.parquet
                                              epochs/epochs-00000.parquet, …

The log is the source of truth (`log`) and the tables are derived from it: opening a sweep reads
only the log and rewrites the tables. Rows are restored from the tables only if the log is damaged
(`recovery`). A full part of the epochs table is sealed: it is not written again, and its rows are
dropped from memory.
"""

from __future__ import annotations

import io
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.results import log, recovery, schema
from raybench.results.core import FINISHED
from raybench.results.log import Log, Record
from raybench.results.rows import Row, Rows, as_table

PART_ROWS = 20_000  # rows of the epochs table after which a part is sealed
SNAPSHOT_EVERY_S = 1.0
SNAPSHOT_SHARE = 0.05  # most of the driver's time that writing large tables may take


class Store:
    """The results of one sweep, open for writing by one process.

    Args:
        listeners: called with every record, starting with the existing ones.
        anew: whether to rewrite the tables even if they are intact.

    Raises:
        ValueError: the folder contains other files, or tables of another version.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        trials: pa.Schema,
        epochs: pa.Schema,
        listeners: Iterable[Callable[[Record], None]] = (),
        *,
        anew: bool = False,
    ) -> None:
        self.folder = folder
        self._schemas = {"trials": trials, "epochs": epochs}
        self.trials: Rows[int] = Rows(trials)
        self._epochs: Rows[tuple[int, int]] = Rows(epochs)
        self._finished: set[int] = set()
        self._to_freeze: list[int] = []
        self._epochs_of: dict[int, dict[int, None]] = defaultdict(dict)  # the unsealed ones
        self._part = 0
        self._lock = threading.RLock()
        self._checksums: Row = {}  # of the tables' files
        self.check: Callable[[], None] = lambda: None
        """Called before each record; raises OSError if nothing may be written any more."""
        self.flush: Callable[[float], None] = lambda limit_s: None
        """Copies everything to the results' address, within this many seconds."""
        for name in ("trials", "epochs", ".state"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.remarks = recovery.made_whole(folder, trials, epochs)
        """One sentence per repair."""
        self._listeners = [self._apply, *listeners]
        path = log.path_in(folder)
        survey = log.survey(path)
        for record in log.read(path):
            assert record is not None
            self._tell(record)
        self._log = Log(path, survey.records)
        if survey.sweep is None:
            self._add("sweep", recovery.heading(trials, epochs), safe=True)
        self._keep_sealed(survey)
        if survey.closed is not None and not anew and self._are_those_of(survey.closed):
            self._snapshot_records, self._next_snapshot = self._log.records, 0.0
            self._checksums = survey.closed
            return
        self.snapshot()
        for stale in folder.glob("epochs/epochs-*.parquet"):
            if int(stale.stem[-5:]) > self._part:
                stale.unlink()

    def put(self, kind: str, content: Row) -> None:
        """Adds a record that is not a table row, for the listeners."""
        self.check()
        self._add(kind, content)

    def put_trial(self, row: Row) -> None:
        """Sets columns of trial `row["number"]`; the row of an ended trial is synced to disk.

        Raises:
            ValueError: a column is not declared or has another type, or the trial has ended;
                nothing is written.
        """
        self.check()
        self.validate("trials", row)
        number = row["number"]
        if number in self._finished:
            raise ValueError(f"trial {number} has ended; its row can no longer change")
        before = self.trials.get(number, {})
        ended = row.get("status") in FINISHED
        if ended:  # writes all columns, so that the row needs no other line of the log
            row = {**before, **row}
            row = {name: value for name, value in row.items() if value is not None}
        else:
            row = {n: v for n, v in row.items() if n == "number" or before.get(n) != v}
        self._add("trial", row, safe=ended)

    def put_epoch(self, row: Row) -> None:
        """Sets the row of a trial's epoch. Its metrics become the trial's latest ones.

        Raises:
            ValueError: a column is not declared or has another type, or the trial has ended;
                nothing is written.
        """
        self.check()
        self.validate("epochs", row)
        if row["number"] in self._finished:
            raise ValueError(f"trial {row['number']} has ended; it can report no more epochs")
        before = self.trials.get(row["number"], {})
        content = {n: v for n, v in row.items() if v is not None or before.get(n) is not None}
        self._add("epoch", content)

    def validate(self, table: str, row: Row) -> None:
        """Raises ValueError if a row does not match the schema of `trials` or `epochs`."""
        schema.validate(self._schemas[table], row)

    def snapshot(self) -> None:
        """Writes both tables; any thread may call it."""
        with self._lock:
            self._snapshot()

    def _snapshot(self) -> None:
        began = time.monotonic()
        self._log.sync()  # the tables must never have more records than the log
        self.trials.freeze(self._to_freeze)
        numbers = [n for n in self._to_freeze if n in self._epochs_of]
        self._epochs.freeze((n, epoch) for n in numbers for epoch in self._epochs_of[n])
        self._to_freeze = []
        if self._epochs.frozen >= PART_ROWS:
            self._seal()
        records = {recovery.RECORDS: str(self._log.records)}
        trials = self.trials.table()
        trials = trials.replace_schema_metadata({**trials.schema.metadata, **records})
        self._checksums = {
            "trials": self._write(trials, self.folder / "trials/trials.parquet"),
            "epochs": self._write(self._epochs.table(), self._part_path(self._part)),
        }
        self._snapshot_records = self._log.records
        cost = time.monotonic() - began
        self._next_snapshot = time.monotonic() + max(SNAPSHOT_EVERY_S, cost / SNAPSHOT_SHARE)

    def snapshot_if_due(self) -> None:
        self.check()
        new = self._log.records > self._snapshot_records
        if new and time.monotonic() >= self._next_snapshot:
            self.snapshot()

    def close(self) -> None:
        """Writes the tables if they lack a record, and closes the log.

        The tables' checksums become the log's last record. As long as they match, opening does not
        rewrite the tables.
        """
        try:
            if self._log.records > self._snapshot_records:
                self.snapshot()
            if "part" not in self._checksums:
                self._add("closed", {"part": self._part, **self._checksums}, safe=True)
        finally:
            self._log.close()

    # --- Records --------------------------------------------------------------------------------

    def _add(self, kind: str, content: Row, *, safe: bool = False) -> None:
        with self._lock:
            self._tell(self._log.append(kind, content, safe=safe))

    def _tell(self, record: Record) -> None:
        for listener in self._listeners:
            listener(record)

    def _apply(self, record: Record) -> None:
        """Applies a record to the rows."""
        kind, _, content = record
        if kind == "sealed":
            self._drop_sealed(content)
        if kind not in ("trial", "epoch") or content["number"] in self._finished:
            return
        number = content["number"]
        trial_row = self.trials.get(number)
        if kind == "trial":
            self.trials[number] = {**(trial_row or {}), **content}
            if content.get("status") in FINISHED:
                self._finished.add(number)
                self._to_freeze.append(number)
            return
        self._epochs[number, content["epoch"]] = content
        self._epochs_of[number][content["epoch"]] = None
        if trial_row is not None:
            self.trials[number] = {**trial_row, **content}

    # --- Parts of the epochs --------------------------------------------------------------------

    def _seal(self) -> None:
        """Seals a part with the epochs of all trials that have ended."""
        ended = [number for number in self._epochs_of if number in self._finished]
        # Written first, so that a reader never misses the other rows.
        self._write(self._epochs.open_table(), self._part_path(self._part + 1))
        crc = self._write(self._epochs.frozen_table(), self._part_path(self._part))
        self._add("sealed", {"part": self._part, "crc": crc, "numbers": ended}, safe=True)
        self._epochs.drop_frozen()

    def _drop_sealed(self, content: Row) -> None:
        self._part = max(self._part, content["part"] + 1)
        for number in content["numbers"]:
            self._epochs.discard((number, epoch) for epoch in self._epochs_of.pop(number, ()))

    def _keep_sealed(self, survey: log.Survey) -> None:
        """Rewrites the sealed parts whose files are missing or damaged."""
        latest = {content["part"]: content for content in survey.sealed}
        for part, content in latest.items():
            path = self._part_path(part)
            if path.exists() and zlib.crc32(path.read_bytes()) == content["crc"]:
                continue
            numbers, rows = set(content["numbers"]), {}
            for record in log.read(log.path_in(self.folder)):
                if record and record[0] == "epoch" and record[2]["number"] in numbers:
                    rows[record[2]["number"], record[2]["epoch"]] = record[2]
            ordered = [rows[key] for key in sorted(rows)]
            crc = self._write(as_table(ordered, self._schemas["epochs"]), path)
            self._add("sealed", {**content, "crc": crc}, safe=True)
            self.remarks.append(f"{path} was damaged; it was restored from the log")

    def _are_those_of(self, closed: Row) -> bool:
        """Whether the tables have not changed since the sweep was closed."""
        paths = {
            "trials": self.folder / "trials/trials.parquet",
            "epochs": self._part_path(self._part),
        }
        return closed["part"] == self._part and all(
            path.exists() and zlib.crc32(path.read_bytes()) == closed[name]
            for name, path in paths.items()
        )

    def _part_path(self, part: int) -> Path:
        return self.folder / "epochs" / f"epochs-{part:05d}.parquet"

    def _write(self, content: pa.Table, path: Path) -> int:
        """Writes a table; returns the file's checksum."""
        buffer = io.BytesIO()
        pq.write_table(content, buffer, compression="zstd", write_page_checksum=True)
        log.replace(path, buffer.getbuffer(), scratch=self.folder / ".state")
        return zlib.crc32(buffer.getbuffer())
