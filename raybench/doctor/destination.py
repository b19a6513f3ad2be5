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
    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            _at_an_address(results) if "://" in results else _in_a_folder(Path(results))
            outcome.append(None)
        except Exception as error:  # of pyarrow, fsspec or the system
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
    from pyarrow import fs

    files, base = fs.FileSystem.from_uri(address)
    path = f"{base}/.raybench-{uuid.uuid4().hex[:8]}"
    with files.open_output_stream(path) as stream:
        stream.write(b"doctor")
    with files.open_input_stream(path) as stream:
        content = stream.read()
    files.delete_file(path)
    if content != b"doctor":
        raise OSError("what was written there reads differently")
