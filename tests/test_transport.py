"""Links between two processes: what is sent arrives, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist

from raybench.parallel.pipeline import shared_memory
from raybench.parallel.pipeline.boundary import Boundary, Form, message_bytes
from raybench.parallel.pipeline.shared_memory import SharedLink
from raybench.parallel.pipeline.transport import GlooLink, Link, PeerLost, Throttled, rooms

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]

SIZE, CHUNKS, STEPS = 1000, 3, 4
TRANSPORTS = ("gloo", "shm")
SLOW_MB_S = 0.1


def link(transport: str, rank: int, name: str) -> Link:
    if transport == "gloo":
        return GlooLink(1 - rank, CHUNKS, SIZE)
    path = shared_memory.FOLDER / f"{name}-{transport}"
    return SharedLink(path, CHUNKS, SIZE, lower=rank == 0)


def message(rank: int, step: int, chunk: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + chunk)
    return torch.randint(256, (SIZE,), dtype=torch.uint8, generator=generator)


def exchanged(joined: Link, rank: int) -> bool:
    """Whether all that the other sends in some steps arrives as it was."""
    for step in range(STEPS):
        joined.begin()
        for chunk in range(CHUNKS):
            joined.send(message(rank, step, chunk), chunk)
        # Not in the order in which they were sent: each has a place of its own.
        for chunk in reversed(range(CHUNKS)):
            if not torch.equal(joined.receive(chunk), message(1 - rank, step, chunk)):
                return False
    return True


def slow_exchange(rank: int, name: str) -> float:
    """Seconds of an exchange over a throttled link, which are those of its bytes."""
    joined = Throttled(link("shm", rank, f"{name}-slow"), SLOW_MB_S)
    began = time.perf_counter()
    assert exchanged(joined, rank)
    joined.begin()  # all of the last step has left
    taken = time.perf_counter() - began
    joined.close()
    return taken


def bits_over(rank: int, name: str, bits: int) -> tuple[torch.Tensor, int]:
    """What arrives of a boundary's tensor at so many bits, and the bytes that were sent."""
    form = Form((4, 16, 8, 8), torch.float32)
    size = message_bytes(form, bits)
    path = shared_memory.FOLDER / f"{name}-bits{bits}"
    boundary = Boundary(SharedLink(path, 1, size, lower=rank == 0), form, bits, None)
    boundary.link.begin()
    if rank == 0:
        boundary.send(values(form), 0)
        return torch.empty(0), boundary.sent_bytes
    return boundary.receive(0).clone(), size


def values(form: Form) -> torch.Tensor:
    return torch.randn(form.shape, generator=torch.Generator().manual_seed(0)).relu()


def refused(rank: int, name: str) -> list[str]:
    """What is said of tensors that are not finite, at each number of bits below 32."""
    form, said = Form((1, 64), torch.float32), []
    for bits in (16, 8, 4, 2):
        path = shared_memory.FOLDER / f"{name}-refused{bits}"
        joined = SharedLink(path, 1, message_bytes(form, bits), lower=rank == 0)
        boundary = Boundary(joined, form, bits, None)
        joined.begin()
        tensor = torch.zeros(form.shape)
        tensor[0, 3] = (torch.nan, torch.inf)[bits % 3 - 1]
        try:
            boundary.send(tensor, 0)
        except FloatingPointError as error:
            said.append(str(error))
        assert boundary.sent_bytes == 0
    return said


def measured(rank: int, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for transport in TRANSPORTS:
        joined = link(transport, rank, name)
        found[transport] = exchanged(joined, rank)
        joined.close()
    found["slow"] = slow_exchange(rank, name)
    found["bits"] = {bits: bits_over(rank, name, bits) for bits in (32, 16, 8, 4, 2)}
    found["refused"] = refused(rank, name)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("links")
    return gloo.together(measured, folder, f"raybench-links-{os.getpid()}")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_that_is_sent_arrives(together, transport):
    assert [found[transport] for found in together] == [True, True]


def test_a_throttled_link_takes_the_time_of_its_bytes(together):
    due = STEPS * CHUNKS * SIZE / (1e6 * SLOW_MB_S)
    for found in together:
        assert due <= found["slow"] < 3 * due + 20


@pytest.mark.parametrize(("bits", "error"), [(32, 0), (16, 0.02), (8, 0.02), (4, 0.3), (2, 1.5)])
def test_bits_decide_bytes_and_error(together, bits, error):
    form = Form((4, 16, 8, 8), torch.float32)
    _, sent = together[0]["bits"][bits]
    arrived, size = together[1]["bits"][bits]
    assert sent == size == message_bytes(form, bits)
    assert 4096 * bits / 8 <= size < 4096 * (bits + 0.5) / 8 + 16
    assert arrived.shape == form.shape
    expected = values(form)
    assert (arrived - expected).abs().max() <= error
    assert (arrived[expected == 0] == 0).all()


def test_what_is_not_finite_never_travels(together):
    for found in together:
        assert found["refused"] == ["a tensor between two stages is not finite"] * 4


def killed(rank: int, name: str) -> tuple[str, float]:
    """What the one says when the other is killed in the midst of a step, and after how long."""
    joined = link("shm", rank, name)
    joined.begin()
    joined.send(message(rank, 0, 0), 0)
    joined.receive(0)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(PeerLost) as raised:
        joined.receive(1)
    return str(raised.value), time.monotonic() - began


def test_a_killed_neighbour_is_missed_at_once(tmp_path):
    name = f"raybench-killed-{os.getpid()}"
    with pytest.raises(RuntimeError, match="exit code -9"):
        gloo.together(killed, tmp_path, name)
    said, waited = torch.load(tmp_path / "found0.pt")
    assert "it has gone" in said
    assert waited < 30  # and not at the deadline
    assert not list(shared_memory.FOLDER.glob(f"{name}*"))


def late(rank: int, name: str) -> list[float]:
    """How long each waits for a message that does not come."""
    waits = []
    for transport in reversed(TRANSPORTS):  # gloo's group is of no use after a deadline
        joined = link(transport, rank, name)
        joined.deadline_s = 0.3  # not of the meeting
        dist.barrier()
        joined.begin()
        began = time.monotonic()
        with pytest.raises(PeerLost):
            joined.receive(0)
        waits.append(time.monotonic() - began)
    return waits


def test_every_receive_has_a_deadline(tmp_path):
    for waits in gloo.together(late, tmp_path, f"raybench-late-{os.getpid()}"):
        assert len(waits) == len(TRANSPORTS)
        # The other's deadline may come first, and end both.
        assert all(0.1 < wait < 30 for wait in waits)


def test_no_room_in_shared_memory_is_said(monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = Path(shared_memory.FOLDER / f"raybench-full-{os.getpid()}")
    with pytest.raises(ValueError, match=r"use pipeline.transport gloo"):
        SharedLink(path, 4, 1 << 20, lower=True)
    assert not path.exists()


def test_a_neighbour_that_never_comes_is_missed_at_the_deadline():
    path = shared_memory.FOLDER / f"raybench-alone-{os.getpid()}"
    for lower in (True, False):
        with pytest.raises(PeerLost):
            SharedLink(path, 1, 8, lower=lower, deadline_s=0.05)
        assert not path.exists()


@pytest.mark.parametrize("size", [1, 63, 64, 65])
def test_buffers_begin_at_cache_lines(size):
    made = rooms(3, size)
    assert made.shape == (3, size)
    assert all((room.data_ptr() - made.data_ptr()) % 64 == 0 for room in made)
