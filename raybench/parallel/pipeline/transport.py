"""Links: how messages travel between two neighbouring stages.

    stage k                            stage k + 1
    after.send(message, m) ──────────▶ before.receive(m)        activations of chunk m
    after.receive(m)       ◀────────── before.send(message, m)  their gradients

A link is one end. Messages have a fixed size, so all receives of a step are posted at its
beginning, and messages travel while both ends compute. A received message may be used in place
until the end of its step.
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

DEADLINE_S = 60.0  # for every receive: a later neighbour counts as dead or not connected


class PeerLost(ConnectionError):
    """A neighbour's message did not come: the neighbour died, gave up, or missed the deadline."""


class Link(Protocol):
    """One end of the connection between two stages."""

    def begin(self) -> None:
        """Begins a step: messages of the last step may now be overwritten."""

    def send(self, message: Tensor, chunk: int) -> None:
        """Sends bytes; the caller leaves them unchanged until the step ends. Raises PeerLost."""

    def receive(self, chunk: int) -> Tensor:
        """The neighbour's bytes for a chunk. Raises PeerLost, also at the deadline."""

    def close(self) -> None:
        """Ends the connection; the neighbour gets PeerLost if it still waits."""


def rooms(chunks: int, size: int) -> Tensor:
    """One buffer per chunk: (chunks, size) bytes, each aligned to a cache line."""
    pitch = -(-size // 64) * 64
    return torch.empty(chunks, pitch, dtype=torch.uint8)[:, :size]


class GlooLink:
    """Point-to-point messages of the process group; its threads send during computation.

    Args:
        peer: the neighbour's rank in the group.
        chunks: chunks of a step.
        incoming: bytes of an incoming message.
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
            raise PeerLost(f"stage {self.peer} accepts no message: {error}") from error
        self._sending.append((work, message))

    def receive(self, chunk: int) -> Tensor:
        self._wait(self._posted[chunk])
        return self._rooms[chunk]

    def close(self) -> None:
        self._sending.clear()  # the process group outlives the link

    def _work(self, work: dist.Work | None) -> dist.Work:
        assert work is not None, "this process is not in the group"
        return work

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait(timedelta(seconds=self.deadline_s))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise PeerLost(f"no word from stage {self.peer}: {reason}") from error


class NcclLink:
    """Messages between GPUs. NCCL has no tags, so each direction has its own group, in which chunks
    are sent in ascending order. Not tested on several GPUs yet.

    Args:
        peer: the neighbour's rank in the whole group.
        groups: the groups for sending and for receiving.
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
    """A link whose messages leave at a given rate, one after another, from their own thread.

    The thread sleeps for the time that the bytes take, so the computation continues as with a slow
    network.

    Args:
        mb_s: megabytes (10^6 bytes) per second that this end sends.
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
