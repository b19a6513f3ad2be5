"""A Ray cluster of several nodes in processes of this machine, with or without autoscaler.

    head             `ray start --head`, with Ray's fake provider if it autoscales
    add(cpus, gpus)  `ray start --address`: a node started by hand; the GPUs need not exist

Ray's own `AutoscalingCluster` runs `ray stop --force`, which stops every Ray on the machine, and
reads a file that the package does not contain. Here the same provider gets a full configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

READY_S = 120.0
TRIES = 3
END_S = 20.0
RAY = Path(sys.executable).parent / "ray"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_ID = 51 * "f" + "00000"  # the fake provider's name for its head
HEAD_TYPE = "ray.head.default"
EMPTY = [
    *("initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
]
SMALL = ["--object-store-memory=100000000", "--disable-usage-stats"]


class OwnCluster:
    """A head, and the nodes that are added to it; all processes end with the context.

    Args:
        cpus: CPUs of the head.
        autoscaler: which of Ray's autoscalers starts nodes; None for none.
        types: the nodes that it may start: name -> {"CPU": …, "GPU": …, "max_workers": …}.
        idle_s: seconds after which an idle node is stopped.
        path: a folder from which the nodes import modules.
    """

    def __init__(
        self,
        *,
        cpus: int = 0,
        autoscaler: Literal["v1", "v2"] | None = None,
        types: Mapping[str, Mapping[str, int]] | None = None,
        idle_s: float = 6.0,
        path: Path | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rb-"))  # short: for the paths of sockets
        port = _free_port()
        # Nothing of a session of this process, and a token that is not that of the home folder.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        if path is not None:
            environment["PYTHONPATH"] = f"{path}:{environment.get('PYTHONPATH', '')}"
        self._environment = environment
        command = ["--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false"]
        command += [f"--dashboard-agent-listen-port={_free_port()}", f"--temp-dir={self._folder}"]
        if autoscaler is not None:
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
            if autoscaler == "v2":
                environment["RAY_enable_autoscaler_v2"] = "1"
                environment["RAY_CLOUD_INSTANCE_ID"] = HEAD_ID
                environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD_ID
            file = self._folder / "autoscaler.json"
            file.write_text(json.dumps(_configuration(port, types or {}, idle_s)))
            command.append(f"--autoscaling-config={file}")
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self.address = self._start(command, "head", r"--address='([\d.]+:\d+)'")
        except BaseException:
            self.end()
            raise
        for variable in ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"):
            environment.pop(variable, None)
        self.environment = {**environment, "RAY_ADDRESS": self.address}
        """Environment for the cluster's clients."""

    def __enter__(self) -> OwnCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def add(self, *, cpus: int = 1, gpus: int = 0) -> int:
        """Starts a node, waits until it has joined, and returns its number for `remove`."""
        command = [f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        number = len(self._processes)
        self._start(command, f"node{number}", "(Ray runtime started)", self.node_id(number))
        return number

    @staticmethod
    def node_id(number: int) -> str:
        """Ray's name for a node that was added."""
        return f"{number:056x}"

    def drain(self, number: int, deadline_s: int) -> None:
        """Announces that a node will be terminated, as a cloud does for a spot instance."""
        command = [str(RAY), "drain-node", f"--address={self.address}"]
        command += [f"--node-id={self.node_id(number)}", "--reason-message=spot"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += [f"--deadline-remaining-seconds={deadline_s}"]
        subprocess.run(command, env=self.environment, check=True, timeout=READY_S)

    def remove(self, number: int) -> None:
        """Ends a node that was added."""
        _end(self._processes[number])

    def signal(self, number: int, sent: signal.Signals) -> None:
        """Sends a signal to all processes of a node: SIGKILL is a power failure."""
        for pid, _ in _session(self._processes[number].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)

    def nodes(self) -> int:
        """The number of nodes whose raylet runs, the head included."""
        return sum(_raylets(process.pid) for process in self._processes)

    def end(self) -> None:
        for process in reversed(self._processes):
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(
        self, arguments: Sequence[str], name: str, pattern: str, node_id: str | None = None
    ) -> str:
        """Starts a node, waits until its output matches the pattern, and returns the first group.

        On a busy machine Ray gives up after a minute; then the start is repeated.
        """
        log = self._folder / f"{name}.log"
        named = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id} if node_id else {}
        for left in reversed(range(TRIES)):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [str(RAY), "start", "--block", *SMALL, *arguments],
                    env={**self._environment, **named},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            try:
                shown = _shown(process, log, pattern)
            except BaseException as error:
                _end(process)
                if not left or not isinstance(error, RuntimeError):
                    raise
            else:
                self._processes.append(process)
                return shown
        raise AssertionError


def _configuration(port: int, types: Mapping[str, Mapping[str, int]], idle_s: float) -> Any:
    """The settings that the fake provider needs, and those that Ray's schema requires."""
    kinds: dict[str, Any] = {
        HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    }
    for name, content in types.items():
        has = {key: amount for key, amount in content.items() if key != "max_workers"}
        kinds[name] = {
            "resources": {**has, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": content["max_workers"],
        }
    return {
        "cluster_name": "raybench",
        "max_workers": sum(content["max_workers"] for content in types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": f"{_own_address()}:{port}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": kinds,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in EMPTY},
        "file_mounts_sync_continuously": False,
    }


def _own_address() -> str:
    """This machine's address as Ray determines it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 80))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shown(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """Waits until the process's output matches the pattern; returns the first group."""
    end = time.monotonic() + READY_S
    while True:
        text = re.sub(r"\x1b\[[\d;]*m", "", log.read_text())
        if found := re.search(pattern, text):
            return found[1]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"Ray did not start: {text[-2000:]}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM, on which `--block` ends its children; then SIGKILL to the rest."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    for pid, _ in _session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(END_S)


def _raylets(leader: int) -> int:
    return sum(command.split("\0")[0].endswith("/raylet") for _, command in _session(leader))


def _session(leader: int) -> list[tuple[int, str]]:
    """Ids and command lines of the processes in the session of `leader`."""
    listed = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # The name, in brackets, may contain spaces.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                listed.append((int(folder.name), (folder / "cmdline").read_text()))
    return listed
