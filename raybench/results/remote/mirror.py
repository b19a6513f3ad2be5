"""Mirror: copies a results folder to its address while a sweep writes it.

    read the tables ──▶ read the log ──▶ put log ──▶ put models ──▶ put tables ──▶ delete

The log is read after the tables and put before them, so that the store's log contains every row of
its tables.

Checkpoints are copied in a separate thread, because a large one must not delay the log.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from raybench.results import log
from raybench.results.remote import copied
from raybench.results.remote.copied import Signature
from raybench.results.remote.lease import Lease
from raybench.results.remote.object_store import ObjectStore
from raybench.results.remote.outage import Outage
from raybench.results.remote.published import Published
from raybench.results.remote.segments import LogCopy

EVERY_S = 2.0
CHECKPOINT_EVERY_S = 15.0
SHARE = 0.05  # largest share of the time for copying tables, and for each checkpoint
FLUSH_S = 120.0  # at the end: time without an answer after which the rest stays here
SAY_EVERY_S = 10.0


class Mirror:
    """Copies from the call of `start` until `close`.

    Args:
        start: number of bytes of the log already in the store; None if it must be replaced.
        known: the copied files, with their signatures here.
        published: the store's tables.
        patience_s: time without an answer of the store after which the sweep ends.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        lease: Lease,
        *,
        start: int | None,
        known: dict[str, Signature],
        published: Published,
        say: Callable[[str], None],
        patience_s: float,
    ) -> None:
        self._store, self._folder, self._lease, self._say = store, folder, lease, say
        self._known, self._published = known, published
        self._log = LogCopy(store, log.path_in(folder), lease.generation, start, lease.require)
        self._outages = [Outage(store.address, folder, patience_s, say) for _ in range(2)]
        self._ended, self._one_cycle = threading.Event(), threading.Lock()
        self._next_tables, self._checkpoint_due = 0.0, dict[str, float]()
        self._threads = [
            threading.Thread(target=self._run, args=(work, outage), name=name, daemon=True)
            for name, work, outage in (
                ("mirror", self.cycle, self._outages[0]),
                ("checkpoints", self._checkpoints, self._outages[1]),
            )
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises OSError if the sweep must end: another process writes, or the store is silent."""
        if self._lease.lost is not None:
            raise self._lease.lost
        for outage in self._outages:
            outage.check()

    def cycle(self, *, last: bool = False) -> None:
        """Copies new content. Raises StoreError and LeaseLost.

        Args:
            last: whether to copy everything, including the tables and checkpoints.
        """
        with self._one_cycle:
            self._lease.require()
            began = time.monotonic()
            files = copied.scan(self._folder)
            new = [key for key, signature in files.items() if self._known.get(key) != signature]
            tables = {}
            if last or began >= self._next_tables:
                tables = self._read([key for key in new if copied.is_table(key)])
            self._published.collect(all_of_it=last)
            self._log.copy()
            for key in new:
                if not copied.is_table(key) and (last or not copied.is_checkpoint(key)):
                    self._put_file(key, files[key])
            self._published.put()
            began = time.monotonic()
            # A part of the epochs is sealed once the next one has its other rows.
            for key in sorted(tables, reverse=True):
                self._lease.require()
                self._store.put(copied.key_there(key), tables[key])
                self._known[key] = files[key]
            if tables:
                took = time.monotonic() - began
                self._next_tables = time.monotonic() + min(60.0, took / SHARE)
            for key in [key for key in self._known if key not in files]:
                self._lease.require()
                self._store.delete(copied.key_there(key))
                del self._known[key]

    def flush(self, limit_s: float = FLUSH_S) -> None:
        """Copies everything. Raises OSError after `limit_s` without success."""
        ended = threading.Event()
        reporter = threading.Thread(target=self._tell, args=(ended,), daemon=True)
        reporter.start()
        try:
            end = time.monotonic() + limit_s
            while True:
                try:
                    self.cycle(last=True)
                    self.cycle(last=True)  # a put that failed earlier has kept back newer content
                    return
                except OSError as error:
                    if self._lease.lost is not None or time.monotonic() >= end:
                        raise self._outages[0].unfinished(error) from error
                time.sleep(1.0)
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                copied.write(self._folder, self._known)

    def close(self) -> None:
        """Ends the threads and copies the rest. Raises OSError if that fails."""
        self._ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=FLUSH_S)
        if self._lease.lost is not None:
            raise self._lease.lost
        self.flush(0.0 if any(outage.over for outage in self._outages) else FLUSH_S)

    # --- The threads ----------------------------------------------------------------------------

    def _run(self, work: Callable[[], None], outage: Outage) -> None:
        pause = EVERY_S
        while not self._ended.wait(pause) and self._lease.lost is None and not outage.over:
            try:
                began = time.monotonic()
                work()
                outage.worked()
                pause = max(EVERY_S, time.monotonic() - began)
            except Exception as error:  # any error; otherwise the thread would end silently
                pause = outage.failed(error)

    def _checkpoints(self) -> None:
        """Copies the checkpoints that have changed and are due."""
        files = copied.scan(self._folder)
        for key in filter(copied.is_checkpoint, files):
            began = time.monotonic()
            if self._known.get(key) == files[key] or began < self._checkpoint_due.get(key, 0.0):
                continue
            self._put_file(key, files[key])
            took = time.monotonic() - began
            self._checkpoint_due[key] = began + max(CHECKPOINT_EVERY_S, took / SHARE)

    def _put_file(self, key: str, signature: Signature) -> None:
        self._lease.require()
        try:
            self._store.put_file(key, self._folder / key)
        except FileNotFoundError:  # deleted since the scan
            return
        self._known[key] = signature

    def _read(self, keys: list[str]) -> dict[str, bytes]:
        contents = {}
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                contents[key] = (self._folder / key).read_bytes()
        return contents

    def _tell(self, ended: threading.Event) -> None:
        """Reports the remaining files periodically, until the copying ends."""
        while not ended.wait(SAY_EVERY_S):
            files = copied.scan(self._folder)
            left = [key for key, one in files.items() if self._known.get(key) != one]
            megabytes = sum(files[key][0] for key in left) / 1e6
            self._say(
                f"copying to {self._store.address}: {len(left)} files, {megabytes:.1f} MB left"
            )
