"""Files: reads and writes the sweep's files on the driver's machine, for workers on other nodes.

    worker on another node                        Files, an actor on the driver's node
    send     part, part, …    ──────────────────▶ write: at its offset in a partial file
             sums of the parts ─────────────────▶ commit: compared with the file, then renamed
    fetch    ◀───────────────────── part, part, … read: of the same version of the file

Every call opens and closes the file, so the actor is stateless and may be restarted between any two
calls. Only a few parts are in transit at once, so a file of any size takes little memory on both
sides. Files outside the folder are refused.
"""

from __future__ import annotations

import glob
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.training import state_file

PART = 4 << 20  # bytes
AHEAD = 4  # parts in transit at once
TRIES = 3  # for a file that arrives damaged or is replaced while it is read
ANSWER_S = 120.0  # deadline of a call, including the start of the actor
HEX = re.compile("[0-9a-f]{32}")

T = TypeVar("T")


class Damaged(OSError):
    """A part or a file differs from what was sent."""


class Replaced(OSError):
    """The file was replaced after its first part was read."""


class Version(NamedTuple):
    """Identifies a file and its content."""

    path: str
    size: int
    inode: int
    changed_ns: int


class Folder:
    """The actor's methods, usable in any process.

    Args:
        root: the folder that all files must be in.
        also: files elsewhere that the user has named.
    """

    def __init__(self, root: str | None, also: Sequence[str] = ()) -> None:
        self._root = Path(root).resolve() if root else None
        named = [Path(path).resolve() for path in also]
        self._also = {*named, *map(state_file.previous, named)}

    def write(self, path: str, sender: str, offset: int, part: bytes, crc: int) -> None:
        """Writes a part into the sender's partial file. Raises Damaged."""
        if zlib.crc32(part) != crc:
            raise Damaged(f"a part of {path} at {offset} was damaged on its way")
        partial = self._partial(path, sender)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if offset == 0:
            for other in partial.parent.glob(f"{glob.escape(Path(path).name)}.*.partial"):
                if other != partial:  # of a dead sender
                    other.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.seek(offset)
            file.write(part)

    def commit(self, path: str, sender: str, sums: list[int], state: bool) -> None:
        """Renames the partial file if all its parts are intact. Raises Damaged.

        Args:
            sums: CRC-32 of every part.
            state: whether the file that is there is kept as the previous state.
        """
        partial, target = self._partial(path, sender), self._inside(path)
        if not partial.exists() and target.exists() and _sums(target) == sums:
            return  # a repeated call, because the answer to the first one was lost
        if not partial.exists() or _sums(partial) != sums:
            partial.unlink(missing_ok=True)
            raise Damaged(f"{path} did not arrive whole")
        if state:
            state_file.put_in_place(partial, target)
        else:
            partial.replace(target)

    def version(self, path: str, state: bool) -> Version | None:
        """The current file; for a state the latest undamaged one. None if there is none."""
        target: Path | None = self._inside(path)
        if state:
            target = state_file.usable(self._inside(path))
        if target is None or not target.exists():
            return None
        about = target.stat()
        return Version(str(target), about.st_size, about.st_ino, about.st_mtime_ns)

    def read(self, version: Version, offset: int) -> tuple[bytes, int]:
        """A part of the file, and its CRC-32. Raises Replaced."""
        with self._inside(version.path).open("rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_ino, about.st_mtime_ns) != (version.inode, version.changed_ns):
                raise Replaced(f"{version.path} was replaced")
            file.seek(offset)
            part = file.read(PART)
        return part, zlib.crc32(part)

    def _partial(self, path: str, sender: str) -> Path:
        target = self._inside(path)
        if not HEX.fullmatch(sender):
            raise ValueError(f"{sender!r} is not the id of a sender")
        return target.with_name(f"{target.name}.{sender}.partial")

    def _inside(self, path: str) -> Path:
        """The resolved path. Raises ValueError if it leaves the folder."""
        resolved = Path(path).resolve()
        if self._root not in resolved.parents and resolved not in self._also:
            raise ValueError(f"{path} is not in the folder of the results")
        return resolved


Files: Any = ray.remote(Folder)
"""The actor."""


@dataclass(frozen=True)
class Home:
    """How a worker finds its trial's files."""

    mark: str
    """A file beside them: a worker that can see it shares their disk."""
    actor: str
    """Name of the actor."""

    @property
    def is_here(self) -> bool:
        return Path(self.mark).exists()


@contextmanager
def served(root: Path | None, mark: Path, also: Sequence[Path] = ()) -> Iterator[Home | None]:
    """Serves the files below `root` to the workers of this cluster.

    Args:
        root: None for `also` alone.
        mark: path on the files' disk; a unique suffix is added.
        also: files elsewhere that the user has named.

    Yields:
        None if Ray runs only on this machine.
    """
    if not os.environ.get("RAY_ADDRESS"):
        yield None
        return
    mark = mark.absolute()
    for stale in mark.parent.glob(f"{glob.escape(mark.name)}-*"):  # of a killed driver
        stale.unlink(missing_ok=True)
    mark = mark.with_name(f"{mark.name}-{uuid.uuid4().hex}")
    mark.touch()
    name = f"raybench-files-{uuid.uuid4().hex}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = Files.options(
        name=name,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=AHEAD,
        scheduling_strategy=here,
    ).remote(root and str(root.absolute()), [str(path.absolute()) for path in also])
    try:
        yield Home(str(mark), name)
    finally:
        mark.unlink(missing_ok=True)
        with suppress(Exception):  # Ray may be gone
            ray.kill(actor)


def served_alone(checkpoint: Path, model: Path | None) -> AbstractContextManager[Home | None]:
    """Serves the files of a single run, as `served` does."""
    mark = checkpoint.with_name(f".{checkpoint.name}.seen")
    return served(None, mark, [path for path in (checkpoint, model) if path])


def send(home: Home, local: Path, path: str, *, state: bool = False) -> None:
    """Copies a file of this node to the driver's machine, atomically.

    Args:
        state: whether the file that is there is kept as the previous state.
    """
    actor = ray.get_actor(home.actor)

    def once() -> None:
        sender, sums, waiting = uuid.uuid4().hex, list[int](), list[Any]()
        with local.open("rb") as file:
            for offset in range(0, max(1, local.stat().st_size), PART):
                part = file.read(PART)
                sums.append(zlib.crc32(part))
                waiting.append(actor.write.remote(path, sender, offset, part, sums[-1]))
                if offset == 0 or len(waiting) == AHEAD:
                    _got(waiting.pop(0))
        for call in waiting:
            _got(call)
        _got(actor.commit.remote(path, sender, sums, state))

    _tried(once)


def fetch(home: Home, path: str, local: Path, *, state: bool = False) -> bool:
    """Copies a file of the driver's machine to this node; False if there is none.

    Args:
        state: whether to use the previous file if the latest one is damaged.
    """
    actor = ray.get_actor(home.actor)

    def once() -> bool:
        version = _got(actor.version.remote(path, state))
        if version is None:
            return False
        offsets = list(range(0, max(1, version.size), PART))
        waiting = [actor.read.remote(version, offset) for offset in offsets[:AHEAD]]
        with local.open("wb") as file:
            for number, offset in enumerate(offsets):
                part, crc = _got(waiting.pop(0))
                if zlib.crc32(part) != crc:
                    raise Damaged(f"a part of {path} at {offset} was damaged on its way")
                file.write(part)
                if number + AHEAD < len(offsets):
                    waiting.append(actor.read.remote(version, offsets[number + AHEAD]))
        return True

    return _tried(once)


def _tried(once: Callable[[], T]) -> T:
    for _ in range(TRIES - 1):
        with suppress(Damaged, Replaced):
            return once()
    return once()


def _got(call: Any) -> Any:
    """The result of a call. Raises the actor's own error, or GetTimeoutError."""
    try:
        return ray.get(call, timeout=ANSWER_S)
    except RayTaskError as error:
        raise error.cause from None


def _sums(path: Path) -> list[int]:
    with path.open("rb") as file:
        parts = iter(lambda: file.read(PART), b"")
        return [zlib.crc32(part) for part in parts] or [zlib.crc32(b"")]
