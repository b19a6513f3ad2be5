"""Does a cluster without CPUs grow for a sweep and shrink after it? With Ray's fake provider.

nodes  1 ─── the sweep begins ──▶ 2, 3 ─── it ends ──▶ 1
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from raybench.bench import steady_space
from raybench.bench.cluster_parts.own_cluster import OwnCluster

TRIALS = 12
WORKERS = 2  # nodes that may be started; each runs one trial at a time
DEADLINE_S = 240.0
SHRINKS_S = 60.0
LOOK_S = 0.2

claims = {"autoscaled": "1"}


def measure() -> dict[str, Any]:
    """Both of Ray's autoscalers, one after the other; `autoscaled` is the share that succeeded."""
    figures: dict[str, Any] = {}
    sides: tuple[Literal["v1", "v2"], ...] = ("v1", "v2")
    for side in sides:
        figures |= {f"{side}_{name}": value for name, value in _once(side).items()}
    fine = [
        figures[f"{side}_trials"] == TRIALS
        and figures[f"{side}_most_nodes"] == 1 + WORKERS
        and figures[f"{side}_nodes_left"] == 1
        for side in sides
    ]
    return {"autoscaled": sum(fine) / len(fine), **figures}


def _once(autoscaler: Literal["v1", "v2"]) -> dict[str, Any]:
    """A sweep in its own cluster: how many nodes there were, and when."""
    types = {"small": {"CPU": 1, "max_workers": WORKERS}}
    with (
        tempfile.TemporaryDirectory() as scratch,
        OwnCluster(cpus=0, autoscaler=autoscaler, types=types) as cluster,
    ):
        command = [sys.executable, "-m", "raybench.tune", "--space", str(steady_space.__file__)]
        command += ["--trials", str(TRIALS), "--results", scratch, "--stopping", "none"]
        log = Path(scratch) / "sweep.log"
        began = time.monotonic()
        with log.open("wb") as output:
            sweep = subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=output)
        most, grown = 1, None
        try:
            while sweep.poll() is None and time.monotonic() - began < DEADLINE_S:
                nodes = cluster.nodes()
                if nodes > 1 and grown is None:
                    grown = time.monotonic() - began
                most = max(most, nodes)
                time.sleep(LOOK_S)
        finally:
            if sweep.poll() is None:
                sweep.kill()
        if sweep.wait() != 0:
            raise RuntimeError(f"the sweep exited with code {sweep.returncode}: {log.read_text()}")
        ended = time.monotonic()
        while (left := cluster.nodes()) > 1 and time.monotonic() - ended < SHRINKS_S:
            time.sleep(LOOK_S)
        shrunk_s = time.monotonic() - ended
        rows = pd.read_parquet(Path(scratch) / Path(str(steady_space.__file__)).stem / "trials")
        return {
            "trials": int((rows["status"] == "COMPLETE").sum()),
            "most_nodes": most,
            "grown_s": grown,
            "sweep_s": ended - began,
            "shrunk_s": shrunk_s,
            "nodes_left": left,
        }
