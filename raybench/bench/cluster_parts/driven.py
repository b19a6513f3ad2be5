"""A sweep whose command runs on the head of a cluster of machines."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from raybench.bench.machines import Machine, Machines
from raybench.bench.victim import finished
from raybench.results.log import Record, path_in, read

RESULTS = "/tmp/results"
LOOK_S = 0.2  # poll interval; each poll reads the whole log
ENDS_S = 60.0  # deadline for an interrupted command to end


class Driven:
    """`python -m raybench.tune` on the head, with results on the head's own disk."""

    def __init__(self, cluster: Machines, space: ModuleType, trials: int, *more: str) -> None:
        name = f"{space.__name__.rpartition('.')[2]}{'-'.join(more).replace('--', '')}"
        head = cluster.machines[0]
        command = [sys.executable, "-m", "raybench.tune", "--space", str(space.__file__)]
        command += ["--name", name, "--results", RESULTS, "--trials", str(trials)]
        command += ["--stopping", "none", "--sampler", "random", *more]
        environment = {"RAY_ADDRESS": cluster.address}
        self.trials = trials
        self.folder = head.path(RESULTS) / name
        self._command = head.start(command, f"/tmp/{name}.log", environment)

    @property
    def log(self) -> str:
        return self._command.log

    def poll(self) -> int | None:
        return self._command.poll()

    def wait(self, deadline_s: float) -> int | None:
        """The exit code; None at the deadline."""
        return self._command.wait(deadline_s)

    def interrupt(self) -> int | None:
        """Sends Ctrl-C; returns the exit code, which should be 130."""
        self._command.signal(signal.SIGINT)
        return self.wait(ENDS_S)

    def kill(self) -> None:
        self._command.signal(signal.SIGKILL)

    def finished(self) -> dict[int, Any]:
        """The rows of the trials that have ended."""
        with contextlib.suppress(OSError):
            return finished(self.folder)
        return {}

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of trials and epochs so far, in order."""
        for kind, _, content in self.timed_records():
            if kind in ("trial", "epoch"):
                yield kind, content

    def timed_records(self) -> Iterator[Record]:
        """All records so far, with their times."""
        with contextlib.suppress(OSError):
            yield from (record for record in read(path_in(self.folder)) if record)

    def epochs(self) -> int:
        """Number of reported epochs; an epoch that was trained twice counts twice."""
        return sum(kind == "epoch" for kind, _ in self.records())

    def goes_on(self) -> int:
        """How often a trial has reported again after it was lost or its stages were restarted."""
        lost, count, restarts = set[int](), 0, dict[int, int]()
        for kind, row in self.records():
            number = row["number"]
            if kind == "trial" and row.get("status") is None and "retries" in row:
                lost.add(number)
                restarts[number] = 0
            elif kind == "epoch":
                count += number in lost
                lost.discard(number)
                now = row.get("restarts") or 0
                count += now > restarts.get(number, 0)
                restarts[number] = now
        return count


def until(true: Callable[[], bool], deadline_s: float, driven: Driven) -> bool:
    """Whether the condition becomes true before the deadline, while the command runs."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if true():
            return True
        if driven.poll() is not None:
            return bool(true())
        time.sleep(LOOK_S)
    return False


def with_process(cluster: Machines, title: str) -> list[Machine]:
    """The live machines except the head on which a process with this title runs."""
    spaces = {os.readlink(f"/proc/{m.pid}/ns/pid"): m for m in cluster.nodes}
    there: dict[str, Machine] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if title in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                machine = spaces.get(os.readlink(folder / "ns/pid"))
                if machine is not None:
                    there[machine.name] = machine
    return [there[name] for name in sorted(there)]
