"""The results folder or address: can this machine write, read back and delete a file there?"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

ANSWER_S = 10.0


def trouble(results: str) -> str | None:
    """Why results cannot be written there, in one line; None if they can.

    Args:
        results: a folder, or an address such as s3://bucket/runs.
    """
    from raybench.results.remote.explained import StoreError

    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            place = results.removeprefix("file://")
            _at_an_address(place) if "://" in place else _in_a_folder(Path(place))
            outcome.append(None)
        except StoreError as error:
            outcome.append(str(error))
        except Exception as error:  # of the system, or of a store's library
            outcome.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return outcome[0] if outcome else f"no answer in {ANSWER_S:g} s"


def _in_a_folder(folder: Path) -> None:
    lowest = folder.absolute()
    while not lowest.exists():
        lowest = lowest.parent
    path = lowest / f".raybench-{uuid.uuid4().hex[:8]}"
    try:
        with path.open("wb") as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != b"doctor":
            raise OSError("what was written there reads differently")
    finally:
        path.unlink(missing_ok=True)


def _at_an_address(address: str) -> None:
    from raybench.results.remote.object_store import ObjectStore

    store, key = ObjectStore(address), f".raybench-{uuid.uuid4().hex[:8]}"
    store.require_there()
    store.put(key, b"doctor")
    try:
        if store.get(key) != b"doctor":
            raise OSError("what was written there reads differently")
    finally:
        store.delete(key)
