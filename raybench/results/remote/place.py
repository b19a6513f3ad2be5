"""Place: the results folder of a sweep for its writer; local or at an address.

with opened("s3://bucket/runs", "pruning") as place:
    sweep = Sweep(place.folder, …)       # a local folder in both cases
    sweep.store.check = place.check
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from raybench.arguments.paths import cache_folder, require_folder
from raybench.results.remote import address as addresses
from raybench.results.remote.brought import bring
from raybench.results.remote.lease import STALE_S, Lease
from raybench.results.remote.mirror import Mirror
from raybench.results.remote.object_store import ObjectStore
from raybench.results.remote.published import Published

PATIENCE_S = 600.0


@dataclass(frozen=True)
class Place:
    """A sweep's results folder, and the address that the user typed."""

    folder: Path
    shown: str
    """The folder or address that was typed, for messages."""
    check: Callable[[], None] = lambda: None
    """Raises OSError if nothing may be written any more."""
    flush: Callable[[float], None] = lambda limit_s: None
    """Copies everything, if the store answers within this many seconds. Raises OSError."""


def require(results: str) -> None:
    """Raises ValueError or OSError within seconds if no results can be written there."""
    addresses.require(results, others=_others(results))
    if addresses.is_remote(results):
        ObjectStore(results).require_there()
    else:
        require_folder(Path(results))


def mirror_folder(address: str) -> Path:
    """The local folder for the results at an address."""
    digest = hashlib.sha256(addresses.under(address).encode()).hexdigest()[:16]
    return cache_folder() / "results" / digest / addresses.name_of(address)


@contextlib.contextmanager
def opened(
    results: str,
    name: str,
    *,
    command: str = "tune",
    models: bool = True,
    wait_s: float = 0.0,
    stale_s: float = STALE_S,
    patience_s: float = PATIENCE_S,
    machine: str = "",
) -> Iterator[Place]:
    """The place of the sweep `name` in `results`, locked by this process until the context ends.

    Args:
        models: whether the stored models are needed on this machine.
        wait_s: how long to wait for another writer.
        stale_s, patience_s, machine: as those of `Lease` and `Mirror`.

    Raises:
        ValueError: another process writes there.
        OSError: the store refuses access or does not answer, or the last copy failed.
    """
    shown = addresses.under(results, name)
    if not addresses.is_remote(results):
        yield Place(Path(results) / name, shown)
        return

    def say(text: str) -> None:
        print(f"raybench.{command}: {text}", file=sys.stderr, flush=True)

    store, folder = ObjectStore(shown), mirror_folder(shown)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=wait_s)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout as error:
            raise ValueError(
                f"another process on this machine writes at {shown}; stop it, or use another --name"
            ) from error
        lease = Lease(
            store,
            wait_s=wait_s,
            stale_s=stale_s,
            renew_s=min(5.0, stale_s / 6),
            machine=machine,
            say=say,
        )
        stack.callback(_released, lease)
        keys = store.listing()
        brought = bring(store, folder, keys, say, models=models)
        mirror = Mirror(
            store,
            folder,
            lease,
            start=brought.start,
            known=brought.known,
            published=Published(store, folder, lease.generation, keys, lease.require),
            say=say,
            patience_s=patience_s,
        )
        stack.callback(mirror.close)
        mirror.start()
        stack.enter_context(named(folder, shown))
        yield Place(folder, shown, mirror.check, mirror.flush)


@contextlib.contextmanager
def named(folder: Path, shown: str) -> Iterator[None]:
    """Makes errors name the address instead of the mirror folder."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if str(folder) not in text:
            raise
        raise ValueError(text.replace(str(folder), shown)) from error


def _released(lease: Lease) -> None:
    with contextlib.suppress(OSError):  # it becomes stale
        lease.release()


def _others(results: str) -> list[str]:
    if not addresses.is_remote(results):
        return []
    import fsspec

    return list(fsspec.available_protocols())
