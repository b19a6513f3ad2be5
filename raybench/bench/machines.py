"""A cluster of simulated machines on one real machine: each is a Ray node in Linux namespaces.

    bench ── pipe ──▶ PID 1 of every machine: when the pipe closes, it and all its processes end
                      │
                      ├── own network: eth0 on a bridge that no other network reaches
                      ├── own /tmp, /dev/shm, HOME, /etc/hosts (its name is 127.0.1.1, as on Debian)
                      ╰── own process ids and host name

The machines share no writable folder: neither results nor checkpoints. The host's network does not
change, and nothing is left when this process ends, however it ends. The sources and the Python
environment must not be below /tmp, because each machine has its own empty /tmp.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import raybench

ROOT = Path(raybench.__file__).parent.parent
READY_S = 240.0  # deadline for a machine's Ray to start
NETWORK = "10.77.0"  # of an isolated bridge, so it cannot collide with other networks
PORT = 6379
OBJECTS = 200_000_000  # bytes of each machine's object store
TOKEN = "raybench-" + "0" * 55
HEALTH = {
    # A node counts as lost after 6 to 9 s of silence; with the defaults after up to a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
FIRST = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps whatever is left to it
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.buffer.read()
"""
DISKS = """
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /tmp/home/.ray
printf %s {token} > /tmp/home/.ray/auth_token
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts
hostname {name}
ip link set lo up
"""
NEW = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def why_not() -> str | None:
    """Why no machines can be created here, in one line; None if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("unshare", "nsenter", "ip", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(
        [
            *NEW,
            "--mount",
            "--uts",
            "sh",
            "-ec",
            "mount -t tmpfs tmpfs /tmp; ip link add br0 type bridge",
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    if tried.returncode:
        return f"no namespaces can be created here: {tried.stderr.strip().splitlines()[-1]}"
    return None


class Machine:
    """One machine, with its own network, disk and processes."""

    def __init__(self, name: str, address: str, setup: str, *namespaces: str) -> None:
        self.name, self.address = name, address
        first = shlex.join([sys.executable, "-I", "-S", "-c", FIRST])
        self._outer = subprocess.Popen(
            [*NEW, *namespaces, "sh", "-ec", f"{setup}\nexec {first}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._outer.stdout is not None
        up = self._outer.stdout.readline()
        if up != b"up\n":
            raise OSError(f"the machine {name} cannot be created: {up.decode().strip()}")
        self.pid = _child(self._outer.pid)
        """The host's process id of its PID 1."""
        self.ray: Command
        """Its `ray start --block`, if it has one."""

    def path(self, inside: str | Path) -> Path:
        """The host's path to a file of the machine."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_SES"))}
        kept |= {"HOME": "/tmp/home", "TMPDIR": "/tmp", "RAY_AUTH_MODE": "token"}
        return kept | HEALTH | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(
        self, command: list[str], log: str, environment: dict[str, str] | None = None
    ) -> Command:
        """Starts a command in the machine; its output goes to a file there."""
        return Command(self, command, log, self.environment | (environment or {}))

    def kill(self) -> None:
        """Ends the machine as a power cut does: its processes cannot react."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(20)
        for pipe in (self._outer.stdin, self._outer.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def alive(self) -> bool:
        return self._outer.poll() is None


class Command:
    """A command that runs in a machine."""

    def __init__(
        self, machine: Machine, command: list[str], log: str, environment: dict[str, str]
    ) -> None:
        self._log = machine.path(log)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        enter = ["nsenter", f"--target={machine.pid}", "--mount", "--net", "--uts", "--pid"]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*enter, f"--wdns={ROOT}", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return re.sub(r"\x1b\[[\d;]*m", "", self._log.read_text(errors="replace"))

    @property
    def pid(self) -> int:
        """The host's process id of the command itself."""
        return _child(self._process.pid)

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, deadline_s: float) -> int | None:
        """The exit code; None at the deadline."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(deadline_s)
        return None

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, OSError):
            os.kill(self.pid, number)


class Machines:
    """A cluster of such machines; the first one is Ray's head, on which the driver runs.

        with Machines() as cluster:
            cluster.head(cpus=0)
            nodes = [cluster.node(cpus=1) for _ in range(3)]

    Raises:
        OSError: no namespaces can be created here; `why_not` says why.
    """

    def __init__(self) -> None:
        self._made = 0
        self.machines: list[Machine] = []
        self._starting: list[tuple[Machine, list[str]]] = []

    def __enter__(self) -> Machines:
        if reason := why_not():
            raise OSError(reason)
        bridge = "ip link add br0 type bridge\nip link set br0 up"
        self._switch = Machine("switch", "", bridge)
        return self

    def __exit__(self, *exception: object) -> None:
        for machine in self.machines:
            if machine.alive:
                machine.kill()
        self._switch.kill()

    def head(self, cpus: int, **more: Any) -> Machine:
        """The head node, ready."""
        machine = self._node(cpus, ("--head", f"--port={PORT}", "--include-dashboard=false"), more)
        self.ready()
        return machine

    def node(self, cpus: int, **more: Any) -> Machine:
        """Another node; it starts in the background, so call `ready` to wait for it.

        Args:
            more: options of `ray start`, such as `num_gpus=1`.
        """
        return self._node(cpus, (f"--address={self.address}",), more)

    @property
    def address(self) -> str:
        return f"{self.machines[0].address}:{PORT}"

    @property
    def nodes(self) -> list[Machine]:
        """The live machines except the head."""
        return [machine for machine in self.machines[1:] if machine.alive]

    def ready(self) -> None:
        """Waits until Ray runs on every machine. Raises OSError if it does not start."""
        starting, self._starting = self._starting, []
        for machine, command in starting:
            end = time.monotonic() + READY_S
            while machine.alive and "Ray runtime started" not in machine.ray.log:
                if time.monotonic() > end:
                    raise OSError(f"Ray does not start: {machine.ray.log[-2000:]}")
                if machine.ray.poll() is not None:  # on a busy host Ray's own 30 s can be too short
                    machine.ray = machine.start(command, "/tmp/ray.log")
                time.sleep(0.05)

    def empty(self) -> Machine:
        """A machine in this network without Ray."""
        self._made += 1
        name, address = f"node{self._made}", f"{NETWORK}.{self._made}"
        machine = Machine(name, address, DISKS.format(name=name, token=TOKEN), "--mount", "--uts")
        self.machines.append(machine)
        cable = f"v{self._made}"
        self._switched("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0",
                       "netns", str(machine.pid))  # fmt: skip
        self._switched("ip", "link", "set", cable, "master", "br0", "up")
        for words in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _checked(["nsenter", f"--target={machine.pid}", "--net", "ip", *words])
        return machine

    def unplug(self, machine: Machine) -> None:
        """Disconnects a machine from the network without notice."""
        number = machine.name.removeprefix("node")
        self._switched("ip", "link", "set", f"v{number}", "down")

    def _node(self, cpus: int, how: tuple[str, ...], more: dict[str, Any]) -> Machine:
        machine = self.empty()
        options = {"object_store_memory": OBJECTS, "num_gpus": 0, **more}
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(*how, f"--node-ip-address={machine.address}", f"--num-cpus={cpus}"),
            "--disable-usage-stats",
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        ]
        machine.ray = machine.start(command, "/tmp/ray.log")
        self._starting.append((machine, command))
        return machine

    def _switched(self, *command: str) -> None:
        _checked(["nsenter", f"--target={self._switch.pid}", "--net", *command])


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(f"{shlex.join(command)}: {done.stderr.strip()}")


def _child(pid: int) -> int:
    """The only child of a process. Raises OSError if there is none."""
    for _ in range(200):
        for task in Path(f"/proc/{pid}/task").iterdir():
            if children := (task / "children").read_text().split():
                return int(children[0])
        time.sleep(0.005)
    raise OSError(f"process {pid} has no child")
