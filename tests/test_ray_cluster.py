"""A cluster of its user's: a node with other versions, one that hangs, and a head that is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_head import Head, head, lose, processes, worker

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 200.0
SWEEP = ["tune", "--space", "tests/job_space.py", "--trials", "3000"]
GROUP = [
    *("train", "pruning", "--workers", "2", "--recipe.epochs", "5000", "--image-size", "8"),
    *("--subset", "0.1", "--recipe.crop", "1", "--recipe.batch", "32"),
]


def start(node: Head, *typed: str) -> subprocess.Popen[str]:
    """A command that joins the head's cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "raybench", *typed],
        env={**node.environment, "RAY_ADDRESS": node.address, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(node: Head, *typed: str) -> tuple[int, str, str]:
    process = start(node, *typed)
    out, error = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, error


def test_a_node_with_another_torch_is_told_by_the_doctor_and_by_tune(tmp_path: Path) -> None:
    other = tmp_path / "other" / "torch-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    results = ("--results", str(tmp_path / "results"))
    path = os.pathsep.join([str(other.parent), str(ROOT)])
    with head(dashboard=False, home=tmp_path) as node, worker(node, PYTHONPATH=path):
        began = time.monotonic()
        code, out, _ = run(node, "doctor", *results)
        assert time.monotonic() - began < 30 + 15  # and the start of the command
        assert code == 1
        assert "torch 9.9.9 instead of" in out
        assert "1 wrong" in out
        code, _, error = run(node, *SWEEP, *results)
        assert code == 2
        assert "has torch 9.9.9 instead of" in error.splitlines()[-1]


def test_a_node_that_hangs_does_not_hold_up_the_doctor(tmp_path: Path) -> None:
    with head(dashboard=False, home=tmp_path) as node, worker(node) as other:
        for pid in processes(other):
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        code, out, _ = run(node, "doctor", "--results", str(tmp_path))
        assert time.monotonic() - began < 30 + 15
        for pid in processes(other):
            os.kill(pid, signal.SIGCONT)
    assert code == 1
    assert "does not answer: no answer in 12 s" in " ".join(out.split())


@pytest.mark.parametrize("typed", [SWEEP, GROUP], ids=["tune", "train"])
@pytest.mark.parametrize("lost", ["head", "gcs_server"])
def test_a_lost_head_ends_a_command_with_one_line(typed, lost, tmp_path: Path) -> None:
    with head(dashboard=False) as node:
        process = start(node, *typed, "--results", str(tmp_path))
        assert process.stdout is not None
        assert process.stderr is not None
        begins = {"tune": ("trials, ", process.stderr), "train": ("epoch 2/", process.stdout)}
        words, stream = begins[typed[0]]
        end = time.monotonic() + DEADLINE_S
        while words not in stream.readline():
            assert process.poll() is None
            assert time.monotonic() < end
        if lost == "head":
            lose(node.pid)
        else:
            for pid in processes(node.pid):
                if Path(f"/proc/{pid}/comm").read_text().strip() == lost:
                    os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, error = process.communicate(timeout=DEADLINE_S)
        assert time.monotonic() - began < 30
    assert process.returncode == 130
    assert " is gone; " in error.splitlines()[-1]
    assert "Traceback" not in error
