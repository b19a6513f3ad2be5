"""A sweep's command as a separate process, and the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd

from raybench.cluster.guardian import MARK, marked
from raybench.results import log
from raybench.results.core import FINISHED


class Driver:
    """`python -m raybench.tune` with a Ray of its own, in its own process group."""

    def __init__(self, space: Path, results: Path, trials: int, *more: str) -> None:
        results.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "raybench.tune", "--space", str(space)]
        command += ["--results", str(results), "--trials", str(trials)]
        command += ["--stopping", "none", "--sampler", "random", "--keep", "none", *more]
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", MARK)}
        with (results / "driver.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid
        self._mark: str | None = None

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, deadline_s: float) -> int | None:
        """The exit code; None if it was killed at the deadline."""
        self.left()  # reads the mark from its children while it runs
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill_group()
            self._process.wait()
            return None

    def kill(self, pid: int | None, what: signal.Signals = signal.SIGKILL) -> bool:
        """Sends a signal; returns whether there was such a process."""
        if pid is None:
            return False
        self.left()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
            return True
        return False

    def kill_group(self) -> None:
        self.left()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def one_of(self, title: str, draw: random.Random | None = None) -> int | None:
        """The id of a process whose command line contains the title."""
        pids = [pid for pid in self.left() if title in _title(pid)]
        return (draw.choice(pids) if draw else pids[0]) if pids else None

    def left(self) -> list[int]:
        """Ids of the live processes that the driver's Ray has started."""
        if self._mark is None:
            for child in _children(self.pid):
                self._mark = self._mark or _mark_of(child)
        if self._mark is None:
            return []
        return [pid for pid in marked(self._mark) if pid != self.pid]


def finished(folder: Path) -> dict[int, pd.Series]:
    """The rows of the trials that have ended, from the log."""
    rows: dict[int, pd.Series] = {}
    for record in log.read(log.path_in(folder)):
        if record and record[0] == "trial" and record[2].get("status") in FINISHED:
            rows.setdefault(record[2]["number"], pd.Series(record[2]))
    return rows


def retried(folder: Path, kind: str) -> int:
    """How often a trial has reported after a loss; for stages, plus the number of restarts."""
    lost: set[int] = set()
    count, restarts = 0, dict[int, int]()
    for record in log.read(log.path_in(folder)):
        if record is None or record[0] not in ("trial", "epoch"):
            continue
        number = record[2]["number"]
        if record[0] == "trial" and record[2].get("status") is None and "retries" in record[2]:
            lost.add(number)
        elif record[0] == "epoch":
            count += number in lost
            lost.discard(number)
            restarts[number] = max(restarts.get(number, 0), record[2].get("restarts") or 0)
    return count + (sum(restarts.values()) if kind == "stage" else 0)


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def _mark_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{MARK}=".encode()):
                return entry.decode().partition("=")[2]
    return None
