"""A process that measures subjects one after another, so that a crash affects only one of them.

    part ── subject ──▶ child ── a row at a time ──▶ part
                          │
       an error, a crash or a deadline ends the child; the next subject gets a new one

After an error on a GPU the process's CUDA context may be lost, so it is never used again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from raybench.bench.gpu_parts.rows import Row
from raybench.hardware import gpu
from raybench.training import process

END_S = 10.0  # deadline for a killed process to end


@dataclass(frozen=True)
class Subject:
    """One subject of a part; `seconds` is its estimated time on an H100.

    `rows` is pickled for another process, so it is a `functools.partial` of a module's function.
    """

    name: str
    rows: Callable[[], Iterator[Row]]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a subject failed, in one line."""

    reason: str


class Child:
    """The process; started for the first subject, and again after a failure."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def rows(self, subject: Subject, deadline_s: float) -> Iterator[Row | Failure]:
        """The subject's rows as they arrive; a failure comes last."""
        ends = time.monotonic() + deadline_s
        pipe = self._pipe or self._started()
        try:
            pipe.send(subject)
            while pipe.poll(max(0.0, ends - time.monotonic())):
                message = pipe.recv()
                if message is None:
                    return
                yield message
                if isinstance(message, Failure):
                    self.close()
                    return
        except (EOFError, OSError):
            yield Failure(f"its process died{self._exit_code()}")
        else:
            yield Failure(f"it ran past its deadline of {deadline_s:.0f} s")
        self.close()

    def close(self) -> None:
        """Ends the process and those that it started."""
        if self._process is None or self._pipe is None:
            return
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):  # its own process group
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # it may not have created the group yet
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(END_S)
        self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,))
        self._process.start()
        there.close()
        return self._pipe

    def _exit_code(self) -> str:
        if self._process is None:
            return ""
        self._process.join(END_S)
        code = self._process.exitcode
        return "" if code is None else f" with exit code {code}"


def _serve(pipe: Connection) -> None:
    """Measures the subjects it receives, until the part ends or a subject fails."""
    os.setsid()
    process.prepare(threads=1)
    while True:
        try:
            subject: Subject = pipe.recv()
        except EOFError:
            return
        try:
            for row in subject.rows():
                pipe.send(row)
        except Exception as error:
            text = str(error).strip().split("\n")[0]
            pipe.send(Failure(f"{type(error).__name__}: {text}"[:200]))
            return
        gpu.release()
        pipe.send(None)
