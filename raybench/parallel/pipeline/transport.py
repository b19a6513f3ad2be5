"""Links: how messages travel between two neighbouring stages.

    stage k                            stage k + 1
    after.send(message, m) ──────────▶ before.receive(m)        activations of chunk m
    after.receive(m)       ◀────────── before.send(message, m)  their gradients

A link is one end. Messages are bytes of a fixed size, so all receives of a step are posted at its
beginning, and a message is underway while both ends compute. A received message may be used where
it lies until the end of its step.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["DEADLINE_S", "GlooLink", "Link", "NcclLink", "PeerLost", "Throttled"]

DEADLINE_S = 60.0  # of every receive: a neighbour that is so late is dead, or not connected


class PeerLost(ConnectionError):
    """A neighbour's message did not come: it died, gave up, or is beyond the deadline."""


class Link(Protocol):
    """One end of the way between two stages."""

    def begin(self) -> None:
        """Begins a step: what arrived in the last one may be overwritten from the next on."""

    def send(self, message: Tensor, chunk: int) -> None:
        """Sends bytes, which stay untouched until the end of the step. Raises PeerLost."""

    def receive(self, chunk: int) -> Tensor:
        """The bytes that the neighbour sent of a chunk. Raises PeerLost, at the deadline too."""

    def close(self) -> None:
        """Lets go of the neighbour, which gets PeerLost where it still waits."""


def rooms(chunks: int, size: int) -> Tensor:
    """A buffer a chunk: (chunks, size) bytes, each beginning at a cache line."""
    pitch = -(-size // 64) * 64
    return torch.empty(chunks, pitch, dtype=torch.uint8)[:, :size]


class GlooLink:
    """Point-to-point messages of the process group, whose threads send beside the computation.

    Args:
        peer: the neighbour's rank in the group.
        chunks: of a step.
        incoming: bytes of a message that arrives.
    """

    def __init__(
        self, peer: int, chunks: int, incoming: int, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self.peer, self.deadline_s = peer, deadline_s
        self._rooms = rooms(chunks, incoming)
        self._posted: list[dist.Work] = []
        self._sending: list[tuple[dist.Work, Tensor]] = []

    def begin(self) -> None:
        for work, _ in self._sending:
            self._wait(work)
        self._sending.clear()
        self._posted = [
            self._work(dist.irecv(room, self.peer, tag=chunk))
            for chunk, room in enumerate(self._rooms)
        ]

    def send(self, message: Tensor, chunk: int) -> None:
        try:
            work = self._work(dist.isend(message, self.peer, tag=chunk))
        except RuntimeError as error:
            raise PeerLost(f"stage {self.peer} takes no message: {error}") from error
        self._sending.append((work, message))

    def receive(self, chunk: int) -> Tensor:
        self._wait(self._posted[chunk])
        return self._rooms[chunk]

    def close(self) -> None:
        self._sending.clear()  # the group ends with the process's use of it, not with the link

    def _work(self, work: dist.Work | None) -> dist.Work:
        assert work is not None, "this process is not in the group"
        return work

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait(timedelta(seconds=self.deadline_s))
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise PeerLost(f"no word from stage {self.peer}: {said}") from error


class NcclLink:
    """The same between GPUs. NCCL knows no tags: each direction has a group of its own, in which
    chunks travel in ascending order. Not tested on several GPUs yet.

    Args:
        peer: the neighbour's rank in the whole group.
        groups: of what is sent, and of what arrives.
    """

    def __init__(
        self,
        peer: int,
        groups: tuple[dist.ProcessGroup, dist.ProcessGroup],
        chunks: int,
        incoming: int,
        device: torch.device,
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.peer, self.deadline_s = peer, deadline_s
        self._out, self._in = groups
        self._rooms = rooms(chunks, incoming).to(device)
        self._sending: list[tuple[dist.Work, Tensor]] = []

    def begin(self) -> None:
        for work, _ in self._sending:
            work.wait(timedelta(seconds=self.deadline_s))
        self._sending.clear()

    def send(self, message: Tensor, chunk: int) -> None:
        work = dist.isend(message, self.peer, group=self._out)
        assert work is not None
        self._sending.append((work, message))

    def receive(self, chunk: int) -> Tensor:
        room = self._rooms[chunk]
        try:
            work = dist.irecv(room, self.peer, group=self._in)
            assert work is not None
            work.wait(timedelta(seconds=self.deadline_s))
        except RuntimeError as error:
            raise PeerLost(f"no word from stage {self.peer}: {error}") from error
        return room

    def close(self) -> None:
        self._sending.clear()


class Throttled:
    """A link whose messages leave at a given rate, one after another, from a thread of its own.

    The thread sleeps for as long as the bytes take, so the computation goes on as with a slow
    network.

    Args:
        mb_s: megabytes (10^6 bytes) a second of this end's direction.
    """

    def __init__(self, link: Link, mb_s: float) -> None:
        self._link, self._bytes_per_s = link, 1e6 * mb_s
        self._queue: queue.Queue[tuple[Tensor, int] | None] = queue.Queue()
        self._failed: PeerLost | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        self._drain()
        self._link.begin()

    def send(self, message: Tensor, chunk: int) -> None:
        if self._failed:
            raise self._failed
        self._queue.put((message, chunk))

    def receive(self, chunk: int) -> Tensor:
        return self._link.receive(chunk)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(1.0)
        self._link.close()

    def _drain(self) -> None:
        """Waits until all messages of the last step have left."""
        self._queue.join()
        if self._failed:
            raise self._failed

    def _serve(self) -> None:
        free = time.perf_counter()
        while (item := self._queue.get()) is not None:
            message, chunk = item
            free = max(time.perf_counter(), free) + message.numel() / self._bytes_per_s
            time.sleep(max(0.0, free - time.perf_counter()))
            try:
                self._link.send(message, chunk)
            except PeerLost as error:
                self._failed = error
            self._queue.task_done()
