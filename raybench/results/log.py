"""Log: every decision and report of a sweep, in order; one record per line, with its checksum.

    3f0c9a11 ["trial",1764072000.125,{"number":0,"status":"RUNNING",…}]
    91d27c5e ["epoch",1764072004.5,{"number":0,"epoch":1,"loss":1.9,…}]

It is a sweep's only source of truth: the Parquet tables and the Optuna journal are derived from it.
Lines are only appended, so a kill truncates at most the last one.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = tuple[str, float, dict[str, Any]]
"""Kind, time in seconds since the epoch, content."""

SYNC_EVERY_S = 1.0  # a power failure may lose records of this time that are not `safe`


def path_in(folder: Path) -> Path:
    """The path of the log of the sweep in `folder`."""
    return folder / ".state" / "log"


class Log:
    """An undamaged log, open for appending records.

    Args:
        records: number of records in the file.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, records: int) -> None:
        self.records = records
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._file).st_size
        if not self._size:
            sync_folder(path.parent)
        self._unsynced, self._next_sync = False, 0.0

    def append(self, kind: str, content: dict[str, Any], *, safe: bool = False) -> Record:
        """Appends a record, which then survives a kill of this process.

        Args:
            safe: whether it must also survive a power failure; takes a few milliseconds.

        Raises:
            OSError: the record could not be written; the log is unchanged.
        """
        record = (kind, round(time.time(), 3), content)
        line = line_of(record)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self.records += 1
        self._unsynced = True
        if safe or time.monotonic() >= self._next_sync:
            self.sync()
        return record

    def sync(self) -> None:
        """Waits until all records are on the disk."""
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = False
            self._next_sync = time.monotonic() + SYNC_EVERY_S

    def close(self) -> None:
        os.close(self._file)


def line_of(record: Record) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read(path: Path) -> Iterator[Record | None]:
    """The records in order, with None for each damaged line.

    A truncated last line, which a kill during a write leaves, is skipped.
    """
    for line in _lines(path):
        yield _parsed(line)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines with their line ends, without a truncated last line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
            elif _is_whole(line + b"\n") or _is_whole(line):  # only its last byte is missing
                yield line if _is_whole(line) else line + b"\n"


@dataclass(frozen=True)
class Survey:
    """A summary of a log, made before any of its content is used."""

    records: int
    damaged: int
    """Number of lines with a wrong checksum."""
    sweep: dict[str, Any] | None
    """Content of the first `sweep` record."""
    sealed: list[dict[str, Any]]
    """Contents of the `sealed` records, in order."""
    closed: dict[str, Any] | None
    """Content of the last record if it is a `closed` one."""


def survey(path: Path) -> Survey:
    """Checks all checksums and parses only few records."""
    records, damaged = 0, 0
    sweep, sealed, last = None, [], b""
    for line in _lines(path):
        if not _is_whole(line):
            damaged += 1
            continue
        records, last = records + 1, line
        if sweep is None and line.startswith(b'["sweep"', 9):
            sweep = json.loads(line[9:-1])[2]
        elif line.startswith(b'["sealed"', 9):
            sealed.append(json.loads(line[9:-1])[2])
    closed = json.loads(last[9:-1])[2] if last.startswith(b'["closed"', 9) else None
    return Survey(records, damaged, sweep, sealed, closed)


def cut_torn_end(path: Path) -> None:
    """Removes a truncated last line; otherwise the next record would be appended to it.

    If only the last line's end is missing or damaged, it is restored.
    """
    with path.open("rb+") as file:
        end = start = file.seek(0, os.SEEK_END)
        last = b""
        while start > 0 and b"\n" not in last:
            block = min(start, 65536)
            start = file.seek(start - block)
            last = file.read(block) + last
        last = last[last.rfind(b"\n") + 1 :]
        if not last:
            return
        file.truncate(end - len(last))
        file.seek(end - len(last))
        if _is_whole(last):
            file.write(last[:-1] + b"\n")
        elif _is_whole(last + b"\n"):
            file.write(last + b"\n")


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes a log of these records in place of the old one, if there is one."""
    replace(path, b"".join(map(line_of, records)))


def replace(path: Path, content: bytes | memoryview, *, scratch: Path | None = None) -> None:
    """Writes a file so that a kill leaves either the old or the new content.

    Args:
        scratch: folder for the unfinished file; by default that of `path`.
    """
    partial = (scratch or path.parent) / f"{path.name}.partial"
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_whole(line: bytes) -> bool:
    try:
        return int(line[:8], 16) == zlib.crc32(line[9:-1])
    except ValueError:
        return False


def _parsed(line: bytes) -> Record | None:
    if not _is_whole(line):
        return None
    kind, when, content = json.loads(line[9:-1])
    return kind, when, content
