"""A state of 350 MB is sent to the driver, its node is killed, and another node resumes from it."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from raybench.bench.cluster_parts import large, large_space
from raybench.bench.cluster_parts.driven import Driven, until, with_process
from raybench.bench.machines import Machines

ENDS_S = 300.0
SAMPLE_S = 0.05
claims = {"large_works": "1", "driver_grows_mb": "at most 100", "files_grow_mb": "at most 100"}


class Memory:
    """The peak private memory of processes by their title, sampled in a thread.

    Pages of Ray's object store are shared, so they are not counted.
    """

    def __init__(self, namespace: str, titles: dict[str, str]) -> None:
        self._namespace, self._titles = namespace, titles
        self.first: dict[str, float] = {}
        self.most: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def grows_mb(self, name: str) -> float:
        """Growth from the first sample after `begin` to the peak."""
        return self.most.get(name, float("nan")) - self.first.get(name, float("nan"))

    def begin(self) -> None:
        """Makes the current memory of the processes the reference."""
        self.first = dict(self.most)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._look(folder)

    def _look(self, folder: Path) -> None:
        if os.readlink(folder / "ns/pid") != self._namespace:
            return
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        for name, title in self._titles.items():
            if title in words:
                for line in (folder / "status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        now = int(line.split()[1]) / 1000
                        self.most[name] = max(self.most.get(name, 0.0), now)


def measure() -> dict[str, float]:
    """Whether the trial completes, and how much memory of the head's processes it takes."""
    with Machines() as cluster:
        head = cluster.head(cpus=0)
        for _ in range(2):
            cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, large_space, 1, "--keep", "all")
        titles = {"driver": "raybench.tune", "files": "ray::Folder"}
        with Memory(os.readlink(f"/proc/{head.pid}/ns/pid"), titles) as memory:
            state = driven.folder / ".state" / "checkpoints" / "0.pt"
            until(lambda: driven.epochs() >= 1, ENDS_S, driven)
            memory.begin()
            until(state.exists, ENDS_S, driven)
            for machine in with_process(cluster, "ray::ResourceTrainable"):
                machine.kill()
            code = driven.wait(ENDS_S)
        models = list((driven.folder / "models").glob("*.safetensors"))
        epochs = [row["epoch"] for kind, row in driven.records() if kind == "epoch"]
        on = driven.goes_on()
        size = models[0].stat().st_size if models else 0
    right = code == 0 and on == 1 and epochs.count(1) == 1 and size == large.MB * 500_000
    return {
        "large_works": float(right),
        "state_mb": large.MB,
        "driver_grows_mb": memory.grows_mb("driver"),
        "files_grow_mb": memory.grows_mb("files"),
    }
