"""A link through Ray's object store: the baseline for the other transports.

send ──▶ ray.put ──▶ Mailbox.put(key, [reference])
receive ◀── ray.get ◀── Mailbox.take(key)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from raybench.parallel.pipeline.transport import DEADLINE_S, PeerLost

Key = tuple[int, int, int, int]  # sender, receiver, step, chunk


@ray.remote(num_cpus=0)
class Mailbox:
    """Passes references between stages, because a stage cannot answer calls while it computes."""

    def __init__(self) -> None:
        self._arrived: dict[Key, asyncio.Future[Any]] = defaultdict(
            asyncio.get_running_loop().create_future
        )

    async def put(self, key: Key, reference: list[Any]) -> None:
        self._arrived[key].set_result(reference)

    async def take(self, key: Key) -> list[Any]:
        reference = await self._arrived[key]
        del self._arrived[key]
        return list(reference)


class StoreLink:
    """One end of the link. When the mailbox is killed, a waiting stage gets PeerLost."""

    def __init__(
        self, mailbox: Any, rank: int, peer: int, chunks: int, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._mailbox, self._rank, self._peer = mailbox, rank, peer
        self._chunks, self.deadline_s = chunks, deadline_s
        self._step = 0
        self._asked: list[Any] = []
        self._sent: list[Any] = []

    def begin(self) -> None:
        self._step += 1
        self._sent.clear()
        self._asked = [
            self._mailbox.take.remote((self._peer, self._rank, self._step, chunk))
            for chunk in range(self._chunks)
        ]

    def send(self, message: Tensor, chunk: int) -> None:
        # As numpy, because a torch tensor would be pickled and copied three times.
        reference = [ray.put(message.cpu().numpy())]
        self._sent.append(reference)
        self._mailbox.put.remote((self._rank, self._peer, self._step, chunk), reference)

    def receive(self, chunk: int) -> Tensor:
        try:
            reference = ray.get(self._asked[chunk], timeout=self.deadline_s)
            stored = ray.get(reference[0], timeout=self.deadline_s)
        except RayError as error:
            raise PeerLost(f"no word from stage {self._peer}: {type(error).__name__}") from error
        return torch.from_numpy(stored.copy())  # arrays in the store are read-only

    def close(self) -> None:
        self._asked.clear()
        self._sent.clear()
