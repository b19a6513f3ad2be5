"""A real Ray head node for tests, started and ended as a person would, and commands against it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
READY_S = 120.0


@dataclass(frozen=True)
class Head:
    """The addresses of a running head, and the environment in which its clients run."""

    address: str
    dashboard: str
    environment: dict[str, str]
    pid: int
    """Of the process that started it, and that leads its session."""


@contextmanager
def head(*, dashboard: bool, home: Path | None = None) -> Iterator[Head]:
    """`ray start --head --block` with two CPUs; ended by its own process group.

    Never `ray stop`: it would end every Ray on the machine.

    Args:
        home: of a user who has never run Ray, and who types the first lines of docs/cluster.md.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_A")}
    start = ["ray", "start", "--head"]
    if home is not None:
        environment["HOME"] = str(home)
        for line in recipe():
            words = shlex.split(line, comments=True)
            if words[0] == "export":
                environment.update([words[1].split("=")])
            elif words[:2] == ["ray", "start"]:
                start = words
                break
            else:
                _ray(environment, *words[1:])
    # The default of 15 starves the workers on a machine that is busy with other tests.
    environment["RAY_worker_niceness"] = "0"
    # A job's `python` is found by the head's PATH.
    environment["PATH"] = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    # A short path: those of Ray's sockets may not exceed 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rb-"))
    # Ports of its own, the job agent's too: another Ray on the machine may hold the usual ones.
    port, page, agent = _free_port(), _free_port(), _free_port()
    command = [
        str(BIN / "ray"),
        *(*start[1:], "--block", "--num-cpus=2", "--disable-usage-stats"),
        f"--port={port}",
        f"--include-dashboard={str(dashboard).lower()}",
        f"--dashboard-port={page}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={folder}",
    ]
    log = folder / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + READY_S
        while not (found := re.search(r"--address='([\d.]+:\d+)'", _plain(log.read_text()))):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Head(found[1], f"http://127.0.0.1:{page}", environment, process.pid)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def worker(node: Head, **environment: str) -> Iterator[int]:
    """Another node of the head's cluster, on this machine; the id of its process.

    Args:
        environment: what differs from the head's.
    """
    log = Path(tempfile.mkdtemp(prefix="rb-")) / "worker.log"
    command = [
        *(str(BIN / "ray"), "start", "--block", f"--address={node.address}", "--num-cpus=2"),
        f"--dashboard-agent-listen-port={_free_port()}",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**node.environment, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process.pid
    finally:
        _end(process)
        shutil.rmtree(log.parent, ignore_errors=True)


def recipe() -> list[str]:
    """The first lines of commands in docs/cluster.md, up to the start of the head."""
    page = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text()
    lines = page.split("```")[1].strip().splitlines()
    assert any(line.startswith("ray start --head") for line in lines)
    return lines


def _ray(environment: dict[str, str], *arguments: str) -> None:
    command = [str(BIN / "ray"), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=READY_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, on which `--block` ends what it started; then SIGKILL to what is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    lose(process.pid)


def lose(leader: int) -> None:
    """SIGKILL to every process of a head, as when its machine is switched off."""
    for pid in processes(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(leader: int) -> list[int]:
    """Processes of the session that a node was started in."""
    listed = subprocess.run(["ps", "-eo", "pid,sid"], capture_output=True, text=True, timeout=20)
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    return [int(pid) for pid, session in rows if int(session) == leader]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)
