"""Hardware and software of a node, collected in a second or two without importing torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raybench.hardware.versions import versions

SMI_S = 8.0
TORCH_S = 20.0  # deadline to import torch and look for the GPU
QUERY = ("--query-gpu=name,driver_version,memory.free", "--format=csv,noheader,nounits")
SEEN = "import torch; print(torch.cuda.device_count())"
LISTED = 10_000  # most files of the data set to list


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The state of one node."""

    host: str
    system: str
    versions: dict[str, str]
    cpus: int
    memory_free: int
    """Bytes of memory that are available."""
    disk_free: int
    """Free bytes for decoded images and for temporary files; the smaller of the two."""
    gpus: tuple[str, ...]
    """Names."""
    driver: str
    gpus_seen: int | None
    """Number of GPUs that torch can use; None if there is no GPU, so that torch is not imported."""
    data: str | None
    """Description of the image files, to compare between nodes; None if there are none."""
    gloo_interface: str
    """GLOO_SOCKET_IFNAME, if the user has set it."""
    interfaces: tuple[str, ...]
    time: float

    def plain(self) -> dict[str, Any]:
        """As a dict, to send through Ray."""
        return asdict(self)


def facts(data: str) -> Facts:
    """The facts of this machine.

    Args:
        data: as for `--data`: a name, or a folder.
    """
    gpus, driver = _gpus()
    cache = Path(os.environ.get("RAYBENCH_CACHE") or Path.home() / ".cache")
    return Facts(
        host=platform.node(),
        system=f"{platform.system()} {platform.machine()}",
        versions=dict(versions()),
        cpus=_cpus(),
        memory_free=_memory_free(),
        disk_free=min(_free(cache), _free(Path(tempfile.gettempdir()))),
        gpus=gpus,
        driver=driver,
        gpus_seen=_seen_by_torch() if gpus else None,
        data=_data(data),
        gloo_interface=os.environ.get("GLOO_SOCKET_IFNAME", ""),
        interfaces=_interfaces(),
        time=time.time(),
    )


def _cpus() -> int:
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def _memory_free() -> int:
    """Linux's MemAvailable, or what a container's limit leaves if that is less."""
    free = -1
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _gpus() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs, and the driver's version."""
    try:
        done = subprocess.run(["nvidia-smi", *QUERY], capture_output=True, text=True, timeout=SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return (), ""
    rows = [row.split(", ") for row in done.stdout.splitlines() if row.count(", ") == 2]
    return tuple(row[0] for row in rows), rows[0][1] if rows and done.returncode == 0 else ""


def _seen_by_torch() -> int:
    """GPUs that torch can use: none if it is a CPU build, or too new for the driver."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", SEEN], capture_output=True, text=True, timeout=TORCH_S
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return 0


def _data(name: str) -> str | None:
    """Number and bytes of the files, as text to compare; `download` if it can be downloaded."""
    if name == "digits":
        return "embedded"
    root = os.environ.get("RAYBENCH_DATA")
    folders = [Path(root) / name] if root else []
    folder = next((one for one in [*folders, Path(name)] if one.is_dir()), None)
    if folder is None:
        return "download" if name in ("cifar10", "cifar100", "beans") else None
    files, size = 0, 0
    for path in folder.rglob("*"):
        if path.is_file():
            files, size = files + 1, size + path.stat().st_size
        if files == LISTED:
            return f"{files:,} files or more"
    return f"{files:,} files, {size:,} bytes" if files else None


def _interfaces() -> tuple[str, ...]:
    import socket

    return tuple(name for _, name in socket.if_nameindex())
