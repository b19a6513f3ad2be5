"""The state from which a run resumes, with any strategy and any number of workers.

FILE            the latest state, with its checksum at the end
FILE.previous   the state before it, in case that file is damaged
FILE.damaged    a damaged file, moved aside
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

MARK = b"raybench"  # before the checksum; torch ignores bytes after the end of its file


def write(state: dict[str, Any], path: Path) -> None:
    """Writes a state, whole or not at all; the old one is kept as the previous one."""
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
    """The latest undamaged state: at `path`, or the previous one; None if there is none.

    A damaged file is moved aside. Any number of processes may call this at once.
    """
    for candidate in (path, _previous(path)):
        with contextlib.suppress(FileNotFoundError):  # another process has moved it aside
            if _is_whole(candidate):
                return candidate
            candidate.replace(path.with_name(f"{path.name}.damaged"))
    return None


def remark(path: Path) -> str:
    """One line about a damaged state, which is moved aside; empty if there is none.

    Raises:
        ValueError: another kind of file is there, which must not be moved.
    """
    if not path.exists() or _is_whole(path):
        return ""
    is_ours = _previous(path).exists() or path.read_bytes()[-len(MARK) - 4 :].startswith(MARK)
    if path.stat().st_size and not is_ours:
        raise ValueError(f"{path} is no checkpoint: name another file, or delete it")
    before = usable(path)
    goes_on = "goes on from the state before it" if before else "starts from the beginning"
    return f"{path} is damaged: it was moved to {path}.damaged, and the run {goes_on}"


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in an undamaged file."""
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
    """The CRC-32 of the next `size` bytes, or of all remaining ones."""
    crc, left = 0, size
    while left is None or left > 0:
        block = file.read(1 << 20 if left is None else min(left, 1 << 20))
        if not block:
            break
        crc = zlib.crc32(block, crc)
        left = None if left is None else left - len(block)
    return crc


def read(path: Path, experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """The stored state; the same experiment may have written it with other `parallel` settings.

    Raises:
        ValueError: it belongs to another experiment; the message names the first different field.
    """
    state = load(path, device)
    other = from_json(state["experiment"])
    if _alike(other) == _alike(experiment):
        return state
    theirs, ours = flatten(_alike(other)), flatten(_alike(experiment))
    name = next(name for name in ours if theirs[name] != ours[name])
    raise ValueError(
        f"{path} was saved by another experiment, with {name} {theirs[name]!r} instead of "
        f"{ours[name]!r}; start without it"
    )


def _alike(experiment: Experiment) -> Experiment:
    """The experiment without its `parallel` settings, which change results only by rounding."""
    return replace(experiment, parallel=Parallel())
