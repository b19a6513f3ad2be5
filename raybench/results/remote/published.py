"""Published: the tables at an address, as objects that are written once and never changed.

    trials/trials-000007-00000.parquet        the trials that ended in some interval
    epochs/epochs-000007-00000.parquet        their epochs

A Parquet reader reads the footer of an object and then its columns. If the object were replaced in
between, pandas would read a mixture. So each trial is published once, after it has ended, in one
object per table, and `pandas.read_parquet("s3://bucket/runs/pruning/trials")` is correct at any
time. The tables with the running trials are in .state/tables, for `raybench.read`.

Reading many objects is slow, so trials are published together: after at most 2 % of the elapsed
time, or once they are 5 % of those already published.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybench.results.core import FINISHED
from raybench.results.recovery import BROKEN
from raybench.results.remote import segments
from raybench.results.remote.object_store import ObjectStore

NAME = re.compile(r"(?P<table>trials|epochs)/(?P=table)-\d{6}-\d{5}\.parquet")
SHARE_OF_ROWS, SHARE_OF_TIME = 0.05, 0.02
SOONEST_S, LATEST_S = 2.0, 300.0


class Published:
    """The trials whose rows are at the address, and those to be published.

    Args:
        keys: the listing of the store.
        before_put: called before each object; raises if nothing may be written.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        generation: int,
        keys: Iterable[str],
        before_put: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._folder, self._generation = store, folder, generation
        self._before_put = before_put
        self._numbers: dict[str, set[int]] = {"trials": set(), "epochs": set()}
        names = [key for key in keys if NAME.fullmatch(key)]
        with ThreadPoolExecutor(segments.AT_ONCE) as pool:
            for key, content in zip(names, pool.map(store.get, names), strict=True):
                self._numbers[key.partition("/")[0]] |= _numbers_in(content)
        self._first = not self._numbers["trials"]
        self._count = 0
        self._waiting: dict[str, tuple[str, set[int], bytes]] = {}
        """Objects to put, by table: key, numbers, content. They do not change until they are put,
        because a put that reports an error may have succeeded."""
        self._since = self._last = time.monotonic()
        self._seen: tuple[int, ...] = ()

    def collect(self, *, all_of_it: bool = False) -> None:
        """Collects the ended trials from the local tables, if it is time to.

        Args:
            all_of_it: whether to collect them in any case.
        """
        path = self._folder / "trials/trials.parquet"
        if self._waiting or not path.exists():
            return
        now, status = time.monotonic(), path.stat()
        state = (status.st_ino, status.st_mtime_ns)
        if not all_of_it and (state == self._seen or now - self._last < SOONEST_S):
            return
        trials = pq.read_table(path, use_threads=False)
        ended = trials.filter(pc.is_in(trials["status"], pa.array(FINISHED)))
        ended = _without(ended, self._numbers["trials"])
        many = len(ended) >= SHARE_OF_ROWS * len(self._numbers["trials"])
        longest = min(LATEST_S, SHARE_OF_TIME * (now - self._since))
        if not len(ended) or not (all_of_it or many or now - self._last >= longest):
            return
        epochs = self._epochs_of(ended)
        ended = _whole(ended, epochs)
        epochs = _without(epochs, self._numbers["epochs"])
        epochs = epochs.filter(pc.is_in(epochs["number"], ended["number"].combine_chunks()))
        self._seen = state
        for table, rows in (("epochs", epochs), ("trials", ended)):
            if len(rows):
                key = f"{table}/{table}-{self._generation:06d}-{self._count:05d}.parquet"
                numbers = set(rows["number"].to_pylist())
                self._waiting[table] = key, numbers, self._as_bytes(rows)
        self._count += 1

    def put(self) -> None:
        """Puts the collected objects, the epochs first. Raises StoreError."""
        for table in list(self._waiting):
            key, numbers, content = self._waiting[table]
            self._before_put()
            self._store.put(key, content)
            self._numbers[table] |= numbers
            del self._waiting[table]
            self._last, self._first = time.monotonic(), False

    def _epochs_of(self, trials: pa.Table) -> pa.Table:
        """The rows of these trials in all parts, read in order: rows only move to later parts."""
        numbers = trials["number"].combine_chunks()
        pieces = []
        for part in sorted((self._folder / "epochs").glob("epochs-*.parquet")):
            read = pq.read_table(part, use_threads=False)
            pieces.append(read.filter(pc.is_in(read["number"], numbers)))
        rows = pa.concat_tables(pieces)
        pairs = zip(rows["number"].to_pylist(), rows["epoch"].to_pylist(), strict=True)
        places: dict[tuple[int, int], int] = {}
        for place, pair in enumerate(pairs):
            places.setdefault(pair, place)
        return rows.take(pa.array(places.values(), pa.int64()))

    def _as_bytes(self, rows: pa.Table) -> bytes:
        """Only the first object has the columns' descriptions, because pandas uses its schema."""
        if not self._first:
            fields = [field.remove_metadata() for field in rows.schema]
            rows = rows.cast(pa.schema(fields, rows.schema.metadata))
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()


def _without(rows: pa.Table, numbers: set[int]) -> pa.Table:
    known = pa.array(sorted(numbers), pa.int64())
    return rows.filter(pc.invert(pc.is_in(rows["number"], known)))


def _whole(trials: pa.Table, epochs: pa.Table) -> pa.Table:
    """The trials whose last epoch is present, because the two tables are written in turn."""
    last: dict[int, int] = {}
    for number, epoch in zip(
        epochs["number"].to_pylist(), epochs["epoch"].to_pylist(), strict=True
    ):
        last[number] = max(epoch, last.get(number, 0))
    pairs = zip(trials["number"].to_pylist(), trials["epoch"].to_pylist(), strict=True)
    there = [not epoch or last.get(number, 0) >= epoch for number, epoch in pairs]
    return trials.filter(pa.array(there, pa.bool_()))


def _numbers_in(content: bytes | None) -> set[int]:
    """The trials in a published object; none if it cannot be read, so they are published again."""
    try:
        rows = pq.read_table(pa.BufferReader(content or b""), columns=["number"])
    except BROKEN:
        return set()
    return set(rows["number"].to_pylist())
