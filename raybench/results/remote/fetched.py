"""Local copies of files at an address: tables, a log, a trained model."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from raybench.arguments.paths import cache_folder
from raybench.results import log
from raybench.results.recovery import BROKEN
from raybench.results.remote import address as addresses
from raybench.results.remote import copied, lease, segments
from raybench.results.remote.object_store import ObjectStore
from raybench.results.remote.place import mirror_folder, named

TABLES = re.compile(
    rf"(?P<sweep>[^/]+/)?({re.escape(copied.TABLES)}(?P<table>(trials|epochs)/[^/]+\.parquet)"
    r"|(?P<file>verdict\.(json|parquet)))"
)
"""Tables of a sweep, or of every sweep in a folder of sweeps."""
TRIES = 5  # for an object that is replaced while it is read
ARRIVES_S = 60.0  # time for an object to arrive that a running study has just written


@contextlib.contextmanager
def tables(address: str) -> Iterator[Path]:
    """A folder with the tables and the verdict of a sweep, or of all sweeps at the address.

    Raises:
        ValueError, OSError: the bucket does not exist, refuses access, or does not answer.
    """
    store = _reachable(address)
    with _folder(address) as folder:
        wanted = [found for key in store.listing() if (found := TABLES.fullmatch(key))]
        with ThreadPoolExecutor(segments.AT_ONCE) as pool:
            list(pool.map(lambda found: _table(store, found, folder), wanted))
        yield folder


def _table(store: ObjectStore, found: re.Match[str], folder: Path) -> None:
    """Fetches a complete table or verdict, while another process may be writing it."""
    path = folder / (found["sweep"] or "") / (found["table"] or found["file"])
    for _ in range(TRIES):
        store.fetch(found[0], path)
        if path.suffix != ".parquet" or (path.exists() and _is_whole(path)):
            return


def _is_whole(path: Path) -> bool:
    try:
        pq.read_table(path, page_checksum_verification=True)
    except BROKEN:
        return False
    return True


@contextlib.contextmanager
def with_log(folder: Path | str) -> Iterator[Path]:
    """A folder with the log of a sweep; a local folder unchanged. Raises the errors of `tables`."""
    address = str(folder)
    if not addresses.is_remote(address):
        yield Path(folder)
        return
    store = _reachable(address)
    with _folder(address) as copy:
        content = segments.assembled(store, store.listing(segments.FOLDER)).content
        if content:
            path = log.path_in(copy)
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        yield copy


def file(path: Path | str) -> Path:
    """A trained model's file; a local file unchanged, one at an address copied to the cache.

    Raises:
        ValueError: there is no such object, and no running study may write it soon.
        OSError: the store refuses access or does not answer.
    """
    address = str(path)
    if not addresses.is_remote(address):
        return Path(path)
    above, name = addresses.above_of(address), addresses.name_of(address)
    store = _reachable(above)
    end = time.monotonic() + ARRIVES_S
    while (stored := store.stored(name)) is None:
        # A study may still be copying its teacher to the address, perhaps from this machine.
        mirrored = mirror_folder(above) / name
        if mirrored.exists():
            return mirrored
        if time.monotonic() >= end or not store.listing(lease.FOLDER):
            raise ValueError(f"{address}: there is no such object")
        time.sleep(0.5)
    identity = hashlib.sha256(f"{address} {stored.size} {stored.when}".encode()).hexdigest()[:16]
    copy = cache_folder() / "fetched" / identity / name
    if not copy.exists() and not store.fetch(name, copy):
        raise ValueError(f"{address}: there is no such object")
    return copy


def names(address: str) -> list[str]:
    """The names of the objects directly below an address. Raises StoreError."""
    return sorted(key for key in _reachable(address).listing() if "/" not in key)


def _reachable(address: str) -> ObjectStore:
    store = ObjectStore(address)
    store.require_there()
    return store


@contextlib.contextmanager
def _folder(address: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raybench-") as scratch:
        folder = Path(scratch) / (addresses.name_of(address) or "results")
        folder.mkdir()
        with named(folder, address.rstrip("/")):
            yield folder
