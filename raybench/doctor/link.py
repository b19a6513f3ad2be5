"""The network between two nodes: one listens, the other measures latency and bandwidth.

measure ──── "p" ────▶ answered ×20     the fastest answer is the latency
        ──── "s" and zeros for half a second, then the end of the stream ──▶
        ◀─── the number of bytes received ────
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass

PINGS = 20
SENDS_S = 0.5
CONNECT_S = 3.0
ANSWER_S = 8.0
BLOCK = bytes(1 << 20)
PING, STREAM = b"p", b"s"


@dataclass(frozen=True, kw_only=True)
class Link:
    """One direction of a connection between two nodes."""

    latency_s: float
    """Round-trip time of one byte."""
    bytes_per_s: float


class Listener:
    """Answers `measure` on a port chosen by the system, until it is closed."""

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=_answer, args=(peer,), daemon=True).start()


def _answer(peer: socket.socket) -> None:
    with peer:
        peer.settimeout(ANSWER_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (kind := peer.recv(1)) == PING:
                peer.sendall(PING)
            if kind == STREAM:
                came = 0
                buffer = bytearray(len(BLOCK))
                while size := peer.recv_into(buffer):
                    came += size
                peer.sendall(struct.pack("!Q", came))
        except OSError:  # the other side reports it
            return


def measure(host: str, port: int) -> Link:
    """Measures the link to a Listener in about `SENDS_S`. Raises OSError if it is unreachable."""
    with socket.create_connection((host, port), CONNECT_S) as peer:
        peer.settimeout(ANSWER_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fastest = float("inf")
        for _ in range(PINGS):
            began = time.perf_counter()
            peer.sendall(PING)
            if peer.recv(1) != PING:
                raise OSError("the other side closed the connection")
            fastest = min(fastest, time.perf_counter() - began)
        peer.sendall(STREAM)
        began = time.perf_counter()
        while time.perf_counter() - began < SENDS_S:
            peer.sendall(BLOCK)
        peer.shutdown(socket.SHUT_WR)
        came = b""
        while len(came) < 8 and (more := peer.recv(8 - len(came))):
            came += more
        seconds = time.perf_counter() - began
    if len(came) < 8:
        raise OSError("the other side closed the connection")
    return Link(latency_s=fastest, bytes_per_s=struct.unpack("!Q", came)[0] / seconds)
