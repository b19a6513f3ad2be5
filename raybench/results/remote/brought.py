"""Synchronizes the mirror folder with the store before a sweep is opened.

The store takes precedence. A local log that continues the store's (because the process was killed
before it had copied the rest) is kept and copied; a log that differs from it is set aside.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raybench.results import log
from raybench.results.remote import copied, segments
from raybench.results.remote.copied import Signature
from raybench.results.remote.object_store import ObjectStore, Stored


@dataclass(frozen=True)
class Brought:
    """The mirror folder's state."""

    start: int | None
    """Number of bytes of its log in the store; None if the store's log must be replaced."""
    known: dict[str, Signature]
    """Its files that are also in the store."""


def bring(
    store: ObjectStore,
    folder: Path,
    keys: dict[str, Stored],
    say: Callable[[str], None],
    *,
    models: bool = True,
) -> Brought:
    """Brings the folder to the state of the store.

    Args:
        keys: the listing of the store.
        models: whether the models are needed on this machine.

    Raises:
        StoreError: the store refuses access or does not answer.
    """
    remote = segments.assembled(store, keys)
    local = _log(folder)
    earlier = copied.read(folder)
    if not remote.whole:
        say(
            f"{store.address}: a segment of the log is missing; its trials are restored from "
            f"{'this machine' if _is_better(folder, remote) else 'the tables'}"
        )
        if _is_better(folder, remote):
            return Brought(None, _fetched(store, folder, keys, earlier or {}, models=models))
    if local and not remote.content and earlier:
        _set_aside(folder, f"{store.address} is empty now", say)
        local, earlier = b"", None
    elif not local.startswith(remote.content) or not remote.whole:
        if local and not remote.content.startswith(local):
            _set_aside(folder, f"{store.address} has gone on elsewhere", say)
        elif folder.exists():
            shutil.rmtree(folder)
        local, earlier = b"", None
    if local or not remote.content:
        known = _fetched(store, folder, keys, earlier or {}, models=models)
        return Brought(len(remote.content), known)
    known = _fetched(store, folder, keys, {}, models=models)
    path = log.path_in(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    log.replace(path, remote.content)  # last: a folder without it is fetched again
    copied.write(folder, known)
    return Brought(len(remote.content), known)


def _log(folder: Path) -> bytes:
    path = log.path_in(folder)
    return path.read_bytes() if path.exists() else b""


def _is_better(folder: Path, remote: segments.Assembled) -> bool:
    """Whether the local log contains everything that is left of the store's damaged log."""
    there, here = remote.content.split(segments.MISSING)[0], _log(folder)
    survey = log.survey(log.path_in(folder))
    return here.startswith(there) and not survey.damaged and len(here) >= len(remote.content)


def _set_aside(folder: Path, why: str, say: Callable[[str], None]) -> None:
    aside = folder.with_name(f"{folder.name}.apart-{time.time_ns()}")
    folder.rename(aside)
    say(f"{why}; what was only on this machine is kept in {aside}")


def _fetched(
    store: ObjectStore,
    folder: Path,
    keys: dict[str, Stored],
    earlier: dict[str, Signature],
    *,
    models: bool,
) -> dict[str, Signature]:
    """Fetches the files that are missing here; returns the signatures of all common files."""
    there = {name: key for key in keys if (name := copied.key_here(key))}
    if not models:
        there = {name: key for name, key in there.items() if not name.startswith("models/")}
    here = copied.scan(folder)
    missing = [name for name in there if name not in here]
    with ThreadPoolExecutor(segments.AT_ONCE) as pool:
        arrived = list(pool.map(lambda name: store.fetch(there[name], folder / name), missing))
    pairs = zip(missing, arrived, strict=True)
    both = {name: copied.signature(folder / name) for name, came in pairs if came}
    for name, signature in here.items():
        same = name in there and earlier.get(name) == signature
        if same and keys[there[name]].size == signature[0]:
            both[name] = signature
    return both
