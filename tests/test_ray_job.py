"""`ray job submit` to a real head node, with token authentication as it comes."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from ray_head import BIN, Head, head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 300.0


def test_submitted_sweep_leaves_parquet(tmp_path: Path) -> None:
    """The job runs in a copy of the working directory, without `.git`, and finishes its trials."""
    results = tmp_path / "results"
    said = {"env_vars": {"RAYBENCH_COMMIT": "0123abc"}}
    command = [
        str(BIN / "ray"),
        *("job", "submit", "--working-dir", str(ROOT)),
        *("--runtime-env-json", json.dumps(said), "--"),
        *("python", "-m", "raybench.tune", "--space", "search_spaces/pruning.py"),
        *("--trials", "2", "--epochs", "1", "--subset", "0.1", "--results", str(results)),
    ]
    with head(dashboard=True) as node:
        submitted = submit(node, command)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    trials = pd.read_parquet(results / "pruning" / "trials")
    assert trials["status"].tolist() == ["COMPLETE", "COMPLETE"]
    assert trials["test_accuracy"].notna().all()
    assert set(trials["commit"]) == {"0123abc"}
    assert len(pd.read_parquet(results / "pruning" / "epochs")) == 2
    assert "Pareto front" in submitted.stdout


def submit(node: Head, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Submits, again while the head's job agent is still coming up."""
    environment = {
        **node.environment,
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": node.dashboard,
    }
    deadline = time.monotonic() + DEADLINE_S
    while True:
        submitted = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        early = "No available agent" in submitted.stderr
        if not early or time.monotonic() > deadline:
            return submitted
