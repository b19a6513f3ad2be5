"""Place: where the results of a sweep are, for whoever writes them; local or at an address.

with opened("s3://bucket/runs", "pruning") as place:
    sweep = Sweep(place.folder, …)       # a folder of this machine in both cases
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
    """A sweep's results folder, under both of its names."""

    folder: Path
    shown: str
    """The folder or address that was typed, for messages."""
    check: Callable[[], None] = lambda: None
    """Raises OSError where nothing may be written any more."""
    flush: Callable[[float], None] = lambda limit_s: None
    """Copies everything, if the store answers within so many seconds. Raises OSError."""


def require(results: str) -> None:
    """Raises ValueError or OSError: no results can be written there, told within seconds."""
    addresses.require(results, others=_others(results))
    if addresses.is_remote(results):
        ObjectStore(results).require_there()
    else:
        require_folder(Path(results))


def mirror_folder(address: str) -> Path:
    """The folder of this machine for what lies at an address."""
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
    """The place of the sweep `name` in `results`, held by this process until the end.

    Args:
        models: whether the stored models are needed on this machine.
        wait_s: how long another writer may take to end.
        stale_s, patience_s, machine: as those of `Lease` and `Mirror`.

    Raises:
        ValueError: another process writes there.
        OSError: the store refuses, does not answer, or could not be sent everything at the end.
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
                f"another process of this machine writes at {shown}; stop it, or take another "
                "--name"
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
    """Lets errors name the address, not the folder that nobody typed."""
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
