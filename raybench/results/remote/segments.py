"""The log as objects: segments of whole lines, each written by only one writer.

    .state/log/000007-00-000000052431-0003
               │      │  │            ╰ number of the segment in the writer's part, from 0
               │      │  ╰ start of the writer's part, in bytes of the log
               │      ╰ how often the writer has restarted its part
               ╰ the writer's generation: that of its lease

The log consists of its writers' parts, each up to the start of the next part. So a writer that
continues after losing its lease, on a machine that was suspended, does no harm: its late segments
lie beyond the start of the next part. A part that replaces the log (`start` 0, after a repair) is
put from its end to its beginning, and counts only once its first segment exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raybench.results.remote.object_store import ObjectStore, Stored

FOLDER = ".state/log"
SEGMENT = 256 * 1024  # bytes: the last segment is put again whenever it has grown
NAME = re.compile(rf"{re.escape(FOLDER)}/(\d{{6}})-(\d\d)-(\d{{12}})-(\d{{4}})")
AT_ONCE = 8
MISSING = b"00000000 a segment is missing\n"
"""A line with a wrong checksum, so that the recovery takes the rows from the tables."""

Part = tuple[int, int, int]
"""Generation, count, start."""


@dataclass(frozen=True)
class Assembled:
    """The log in the store."""

    content: bytes
    parts: tuple[Part, ...]
    whole: bool
    """Whether no segment is missing."""


def generation_in(keys: dict[str, Stored]) -> int:
    """The latest generation that has written; 0 if none has."""
    return max((int(found[1]) for key in keys if (found := NAME.fullmatch(key))), default=0)


def assembled(store: ObjectStore, keys: dict[str, Stored]) -> Assembled:
    """The log, assembled from all writers' parts. Raises StoreError.

    Args:
        keys: the listing of the store.
    """
    parts: dict[Part, dict[int, str]] = {}
    for key in keys:
        if found := NAME.fullmatch(key):
            generation, count, start, number = map(int, found.groups())
            parts.setdefault((generation, count, start), {})[number] = key
    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = [key for segments in parts.values() for key in segments.values()]
        contents = dict(zip(names, pool.map(store.get, names), strict=True))
    log, whole = bytearray(), True
    for part in sorted(parts):
        _, count, start = part
        segments = parts[part]
        if 0 not in segments and count and start == 0:  # the part was never completed
            continue
        if whole or start == 0:
            if start > len(log):
                whole = False
                log += MISSING
            elif start == 0:
                log.clear()
                whole = True
            else:
                del log[start:]
        for number in range(max(segments) + 1):
            content = contents.get(segments.get(number, ""))
            if content is None:
                whole = False
                log += MISSING
            else:
                log += content
    return Assembled(bytes(log), tuple(sorted(parts)), whole)


class LogCopy:
    """Copies new lines of a local log to the store.

    Args:
        start: number of its bytes in the store; None if it replaces the store's log.
        before_put: called before each object; raises if nothing may be written.
    """

    def __init__(
        self,
        store: ObjectStore,
        path: Path,
        generation: int,
        start: int | None,
        before_put: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._path, self._generation = store, path, generation
        self._before_put = before_put
        self._count, self._number = 0, 0
        self._start = self._segment = self.copied = start or 0
        """Start of the part and of its last segment; bytes of the log in the store."""
        self._replaces = start is None
        self._file = self._identity()

    def copy(self) -> None:
        """Puts the complete lines that are not yet in the store. Raises StoreError."""
        if self._file is None and not self.copied:  # a new log
            self._file = self._identity()
        if self._replaces or self._identity() != self._file:
            self._begin_anew()
            return
        while True:
            content = self._whole_lines()
            if self._segment + len(content) <= self.copied:
                return
            piece = content[: _cut(content)]
            self._put(self._number, piece)
            self.copied = self._segment + len(piece)
            if len(piece) < len(content):
                self._number, self._segment = self._number + 1, self.copied

    def _begin_anew(self) -> None:
        """Puts a rewritten log so that a kill leaves either the old or the new one."""
        identity = self._identity()
        self._count, self._start, self._segment = self._count + 1, 0, 0
        older = [key for key in self._store.listing(FOLDER) if NAME.fullmatch(key)]
        content, pieces, at = self._whole_lines(), list[bytes](), 0
        while at < len(content):
            piece = content[at : at + _cut(content[at : at + 2 * SEGMENT])]
            pieces.append(piece)
            at += len(piece)
        for number, piece in reversed([*enumerate(pieces)]):
            self._put(number, piece)
        self._number = max(0, len(pieces) - 1)
        self.copied = len(content)
        self._segment = len(content) - len(pieces[-1]) if pieces else 0
        self._replaces, self._file = False, identity
        for key in older:
            self._store.delete(key)

    def _put(self, number: int, content: bytes) -> None:
        self._before_put()
        part = f"{self._generation:06d}-{self._count:02d}-{self._start:012d}-{number:04d}"
        self._store.put(f"{FOLDER}/{part}", content)

    def _whole_lines(self) -> bytes:
        """The log from the last segment on."""
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._segment)
            content = file.read()
        return content[: content.rfind(b"\n") + 1]

    def _identity(self) -> int | None:
        """A value that changes if the log is replaced by another file."""
        return self._path.stat().st_ino if self._path.exists() else None


def _cut(content: bytes) -> int:
    """The length of the first segment, in bytes of whole lines."""
    if len(content) <= SEGMENT:
        return len(content)
    end = content.rfind(b"\n", 0, SEGMENT) + 1
    return end or content.find(b"\n") + 1
