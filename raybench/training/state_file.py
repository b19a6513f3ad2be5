"""The file of a saved state: written atomically, with a checksum at its end. Imports no torch.

FILE            the latest state
FILE.previous   the state before it, in case FILE is damaged
FILE.damaged    a damaged file, moved aside
"""

from __future__ import annotations

import contextlib
import io
import zlib
from pathlib import Path

MARK = b"raybench"  # before the checksum; torch ignores bytes after the end of its file


def seal(path: Path) -> None:
    """Adds the checksum to a file that was just written."""
    with path.open("rb+") as file:
        crc = _crc(file)
        file.write(MARK + crc.to_bytes(4, "big"))


def put_in_place(partial: Path, path: Path) -> None:
    """Renames a sealed file to `path`; the state that was there is kept as the previous one."""
    if path.exists():
        path.replace(previous(path))
    partial.replace(path)


def usable(path: Path) -> Path | None:
    """The latest undamaged state: at `path`, or the previous one; None if there is none.

    A damaged file is moved aside. Any number of processes may call this at once.
    """
    for candidate in (path, previous(path)):
        with contextlib.suppress(FileNotFoundError):  # another process has moved it aside
            if is_whole(candidate):
                return candidate
            candidate.replace(path.with_name(f"{path.name}.damaged"))
    return None


def previous(path: Path) -> Path:
    """Where the state before the one at `path` is kept."""
    return path.with_name(f"{path.name}.previous")


def is_whole(path: Path) -> bool:
    """Whether the file ends with its own checksum. Raises FileNotFoundError."""
    size = path.stat().st_size - len(MARK) - 4
    if size <= 0:
        return False
    with path.open("rb") as file:
        crc = _crc(file, size)
        return file.read() == MARK + crc.to_bytes(4, "big")


def _crc(file: io.BufferedIOBase, size: int | None = None) -> int:
    """The CRC-32 of the next `size` bytes, or of all remaining ones."""
    crc, left = 0, size
    while left is None or left > 0:
        block = file.read(1 << 20 if left is None else min(left, 1 << 20))
        if not block:
            break
        crc = zlib.crc32(block, crc)
        left = None if left is None else left - len(block)
    return crc
