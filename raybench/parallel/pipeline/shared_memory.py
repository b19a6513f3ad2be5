"""A link in shared memory, for two stages on one node.

    file ┤ flags │ chunk 0, 1, … up │ again │ chunk 0, 1, … down │ again │

There is one slot per chunk, direction and turn (odd and even steps). The sender copies a message
into its slot and then writes the step's number beside it. The receiver waits for that number and
uses the slot in place. No sender waits for a free slot: before a stage sends in a step, a message
from its neighbour has shown that the neighbour finished the step before the last.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raybench.parallel.pipeline.transport import DEADLINE_S, PeerLost

FOLDER = Path("/dev/shm")
YIELDS = 20  # checks before sleeping: spinning for longer takes the core from other processes
SLEEP_S = 50e-6
LOOK_S = 0.1  # between two checks that the neighbour is alive
READY, CLOSED = 0, 2  # index of the lower stage's flag; the upper stage's is the next
FLAGS = 4


class SharedLink:
    """One end of the link. The lower stage makes the file and unlinks it once both have opened it,
    so no file remains, however the processes end.

    Args:
        path: path of the file, the same at both ends.
        chunks: chunks of a step.
        size: bytes of a message in either direction.
        lower: whether this is the stage nearer to the images.

    Raises:
        ValueError: there is no room for the messages, or no shared memory on this system.
        PeerLost: the neighbour did not open the file before the deadline.
    """

    def __init__(
        self,
        path: Path,
        chunks: int,
        size: int,
        *,
        lower: bool,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.deadline_s, self._own, self._peer = deadline_s, 0 if lower else 1, 1 if lower else 0
        self._step = 0
        pitch = -(-size // 64) * 64
        header = -(-(FLAGS + 4 * chunks) * 8 // 4096) * 4096
        until = time.monotonic() + deadline_s
        if lower:
            self._file = _new_file(path, header + 4 * chunks * pitch)
        else:
            self._file = _file_of_peer(path, header + 4 * chunks * pitch, until)
        memory = mmap.mmap(self._file, 0)
        self._flags = np.frombuffer(memory, np.int64, FLAGS + 4 * chunks)
        # Two directions, two turns: the lower stage's messages first.
        self._sent = self._flags[FLAGS:].reshape(2, 2, chunks)
        # Two tensors with separate version counters: otherwise autograd would mistake a sent
        # message for an in-place change of a received one that it has saved.
        self._out, self._in = (
            torch.frombuffer(memory, dtype=torch.uint8, offset=header).view(2, 2, chunks, pitch)[
                side, ..., :size
            ]
            for side in (self._own, self._peer)
        )
        # The system releases a lock when its process ends, even by SIGKILL.
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._own)
        self._flags[READY + self._own] = 1
        try:
            self._wait(self._flags, READY + self._peer, 1, until)
        finally:
            if lower:
                path.unlink(missing_ok=True)

    def begin(self) -> None:
        self._step += 1

    def send(self, message: Tensor, chunk: int) -> None:
        turn = self._step % 2
        self._out[turn, chunk].copy_(message)
        # After the copy: x86 keeps the order of stores, and so do the interpreter's locks.
        self._sent[self._own, turn, chunk] = self._step

    def receive(self, chunk: int) -> Tensor:
        turn = self._step % 2
        until = time.monotonic() + self.deadline_s
        self._wait(self._sent[self._peer, turn], chunk, self._step, until)
        return self._in[turn, chunk]

    def close(self) -> None:
        if self._file >= 0:
            self._flags[CLOSED + self._own] = 1
            os.close(self._file)
            self._file = -1

    def _wait(self, flags: np.ndarray, place: int, value: int, until: float) -> None:
        for _ in range(YIELDS):
            if flags[place] >= value:
                return
            os.sched_yield()
        looked = time.monotonic()
        while flags[place] < value:
            time.sleep(SLEEP_S)
            now = time.monotonic()
            if now - looked > LOOK_S or now > until:
                looked = now
                gone = self._flags[CLOSED + self._peer] or self._peer_died()
                if (gone or now > until) and flags[place] < value:
                    why = "it has gone" if gone else f"nothing came in {self.deadline_s:g} s"
                    raise PeerLost(f"no word from the neighbouring stage: {why}")

    def _peer_died(self) -> bool:
        """Whether the neighbour's lock is free; its process holds the lock until it ends."""
        if not self._flags[READY + self._peer]:
            return False  # it has not started yet
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._peer)
        except OSError:
            return False
        return True


def _new_file(path: Path, size: int) -> int:
    """A new file of `size` bytes, which are allocated at once."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Otherwise a full /dev/shm would kill the process with SIGBUS at some later write.
            os.posix_fallocate(file, 0, size)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise ValueError(
            f"no room for {size / 1e6:.0f} MB of shared memory in {path.parent} "
            f"({error.strerror}): use pipeline.transport gloo, fewer bits, or a smaller batch"
        ) from error
    return file


def _file_of_peer(path: Path, size: int, until: float) -> int:
    """The file that the lower stage makes, once it has its full size."""
    while True:
        try:
            if path.stat().st_size == size:
                return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            pass
        if time.monotonic() > until:
            raise PeerLost(
                f"the stage before has not made {path}: shared memory is for stages on one node"
            )
        time.sleep(0.001)
