"""The state from which a run goes on: with any strategy, and with any number of workers.

FILE            the latest state, and its checksum at the end
FILE.previous   the one before, for when that file is damaged
FILE.damaged    a damaged one, set aside
"""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raybench.experiment import Experiment, Parallel, flatten, from_json

MARK = b"raybench"  # before the checksum; torch reads files with something behind their end


def write(state: dict[str, Any], path: Path) -> None:
    """Writes a state, whole or not at all; the one that was there stays as the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
    with partial.open("rb+") as file:
        crc = _crc(file)
        file.write(MARK + crc.to_bytes(4, "big"))
    if path.exists():
        path.replace(_previous(path))
    partial.replace(path)


def usable(path: Path) -> Path | None:
    """The latest state that is as it was written: at `path`, or the one before; None for none.

    A damaged file is set aside. Any number of processes may ask at once.
    """
    for candidate in (path, _previous(path)):
        with contextlib.suppress(FileNotFoundError):  # another process has set it aside
            if _is_whole(candidate):
                return candidate
            candidate.replace(path.with_name(f"{path.name}.damaged"))
    return None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in a file that is whole."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size - len(MARK) - 4
    if size <= 0:
        return False
    with path.open("rb") as file:
        crc = _crc(file, size)
        return file.read() == MARK + crc.to_bytes(4, "big")


def _crc(file: io.BufferedIOBase, size: int | None = None) -> int:
    """Of the next `size` bytes, or of all that are left."""
    crc, left = 0, size
    while left is None or left > 0:
        block = file.read(1 << 20 if left is None else min(left, 1 << 20))
        if not block:
            break
        crc = zlib.crc32(block, crc)
        left = None if left is None else left - len(block)
    return crc


def read(path: Path, experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """The state that was written, by the same experiment spread in any way.

    Raises:
        ValueError: it is of another experiment; the first field that differs is named.
    """
    state = load(path, device)
    other = from_json(state["experiment"])
    if _alike(other) == _alike(experiment):
        return state
    theirs, ours = flatten(_alike(other)), flatten(_alike(experiment))
    name = next(name for name in ours if theirs[name] != ours[name])
    raise ValueError(
        f"{path} was saved by another experiment, with {name} {theirs[name]!r} for "
        f"{ours[name]!r}; start without it"
    )


def _alike(experiment: Experiment) -> Experiment:
    """Without how it is spread, which no result depends on but for rounding."""
    return replace(experiment, parallel=Parallel())
