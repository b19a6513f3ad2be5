"""A separate process that ends the processes that a driver leaves behind.

    driver ── pipe ──▶ guardian      the pipe closes when the driver ends, for whatever reason
                       │
                       ╰──▶ SIGKILL to all processes with the driver's mark in their environment

Ray's own processes die with their parent, but some of its workers do not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "RAYBENCH_SESSION"  # in the environment of every process that this driver's Ray starts
GRACE_S = 1.0  # time for the processes to exit by themselves
LOOKS_S = 4.0  # after that, how long to look for more of them
PAUSE_S = 0.2


class Guardian:
    """Guards the Ray that this process starts: create it before Ray, `close` it after Ray ends."""

    def __init__(self) -> None:
        mark = uuid.uuid4().hex
        os.environ[MARK] = mark
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=subprocess.PIPE,
            # A signal to the driver's process group must not reach this process.
            start_new_session=True,
        )

    def close(self) -> None:
        os.environ.pop(MARK, None)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def marked(mark: str) -> list[int]:
    """Ids of the processes that have the mark in their environment."""
    pids, wanted = [], f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
    return [pid for pid in pids if pid != os.getpid()]


def watch(mark: str, driver: int) -> None:
    """Waits for the driver to end, then ends the processes that it left behind."""
    sys.stdin.read()
    end = time.monotonic() + GRACE_S
    while [pid for pid in marked(mark) if pid != driver] and time.monotonic() < end:
        time.sleep(PAUSE_S)
    end = time.monotonic() + LOOKS_S
    while (left := [pid for pid in marked(mark) if pid != driver]) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    watch(sys.argv[1], os.getppid())
