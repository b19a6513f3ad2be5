"""Jobs on a real head node of a user who has never run Ray: token, submit, detach, stop, fetch."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import requests
from ray_head import BIN, Head, head, lose

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 300.0
SPACE = ["--space", "tests/job_space.py"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head in an empty HOME, started as docs/cluster.md tells."""
    with head(dashboard=True, home=tmp_path_factory.mktemp("home")) as started:
        yield started


def environment(node: Head) -> dict[str, str]:
    """Of a user's shell: the commands find the token themselves."""
    own = {name: text for name, text in node.environment.items() if name != "RAY_AUTH_MODE"}
    return {**own, "RAY_API_SERVER_ADDRESS": node.dashboard, "PYTHONPATH": str(ROOT)}


def submit(node: Head, *typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raybench.submit", *typed],
        cwd=ROOT,
        env=environment(node),
        timeout=DEADLINE_S,
        capture_output=True,
        text=True,
    )


def test_a_sweep_is_submitted_and_its_results_are_fetched(node: Head, tmp_path: Path) -> None:
    """With a token that the head wants; and a second fetch brings nothing new."""
    assert requests.get(f"{node.dashboard}/api/jobs/", timeout=60).status_code == 401
    sweep = [*SPACE, "--trials", "2"]
    done = submit(node, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pareto front" in done.stdout
    size = re.search(r"uploads \S+: \d+ files, (\d+\.\d+) MB", done.stderr)
    assert size is not None
    assert float(size[1]) <= 2
    assert "results: ~/raybench/results/job_space" in done.stderr
    assert "without a token" not in done.stderr
    fetched = submit(node, *sweep, "--fetch", str(tmp_path))
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    trials = pd.read_parquet(tmp_path / "job_space" / "trials")
    assert trials["status"].tolist() == ["COMPLETE", "COMPLETE"]
    assert trials["test_accuracy"].notna().all()
    assert set(trials["commit"]) - {""}
    assert len(pd.read_parquet(tmp_path / "job_space" / "epochs")) == 2
    kept = sorted((tmp_path / "job_space" / "models").iterdir())
    there = Path(node.environment["HOME"], "raybench/results/job_space/models")
    assert [file.read_bytes() for file in kept] == [
        (there / file.name).read_bytes() for file in kept
    ]


def test_without_the_token_one_line_says_what_to_do(node: Head, tmp_path: Path) -> None:
    stranger = replace(node, environment={**node.environment, "HOME": str(tmp_path)})
    refused = submit(stranger, *SPACE)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "copy ~/.ray/auth_token of the head" in refused.stderr


@pytest.mark.nightly
def test_plain_ray_job_submit_works_too(node: Head, tmp_path: Path) -> None:
    """The lines of the README: the results are not in the job's temporary folder."""
    said = {"env_vars": {"RAYBENCH_COMMIT": "0123abc"}}
    command = [
        *(str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT)),
        *("--runtime-env-json", json.dumps(said), "--"),
        *("python", "-m", "raybench.tune", *SPACE, "--trials", "1", "--name", "plain"),
    ]
    done = subprocess.run(
        command,
        env={**environment(node), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = Path(node.environment["HOME"], "raybench/results/plain")
    assert set(pd.read_parquet(results / "trials")["commit"]) == {"0123abc"}


class Attached:
    """`submit` as a person runs it: its lines as they come, and Ctrl-C."""

    def __init__(self, node: Head, *typed: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raybench.submit", *typed],
            cwd=ROOT,
            env=environment(node),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._read = threading.Thread(target=self._follow, daemon=True)
        self._read.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not any(words in line for line in self.lines):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < end, self.lines
            time.sleep(0.1)

    def end(self, by: int | None = None) -> int:
        if by is not None:
            self.process.send_signal(by)
        code = self.process.wait(DEADLINE_S)
        self._read.join(DEADLINE_S)
        return code


@pytest.mark.nightly
def test_a_job_is_left_met_again_stopped_and_resumed(node: Head, tmp_path: Path) -> None:
    sweep = [*SPACE, "--trials", "3000", "--name", "long"]
    first = Attached(node, *sweep)
    first.wait_for(" running, ")  # a line of the progress
    assert first.end(by=signal.SIGINT) == 130
    assert "detached; raybench-tune-long-1 continues" in first.lines[-1]
    other = submit(node, *sweep, "--seed", "3")
    assert (other.returncode, "is running with other arguments" in other.stderr) == (2, True)
    running = submit(node, *sweep, "--fetch", str(tmp_path))
    assert running.returncode == 0, running.stderr
    early = pd.read_parquet(tmp_path / "long" / "trials").set_index("number")
    early = early[early["status"] != "RUNNING"]
    again = Attached(node, *sweep)
    again.wait_for("attached to raybench-tune-long-1")
    stopped = submit(node, *sweep, "--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert again.end() == 130
    assert [line for line in again.lines if "interrupted with" in line]  # it had time to save
    resumed = Attached(node, *sweep)
    resumed.wait_for("raybench-tune-long-2 resumes")
    resumed.wait_for(" running, ")
    assert submit(node, *sweep, "--stop").returncode == 0
    assert resumed.end() == 130
    fetched = submit(node, *sweep, "--fetch", str(tmp_path))
    assert fetched.returncode == 0, fetched.stderr
    trials = pd.read_parquet(tmp_path / "long" / "trials").set_index("number")
    assert trials.index.is_unique
    assert len(trials) > len(early)
    pd.testing.assert_frame_equal(trials.loc[early.index], early, check_dtype=False)


@pytest.mark.nightly
def test_a_lost_head_ends_the_following_with_one_line(tmp_path: Path) -> None:
    with head(dashboard=True, home=tmp_path) as lost:
        following = Attached(lost, *SPACE, "--trials", "200", "--name", "lost")
        following.wait_for(" running, ")
        lose(lost.pid)
        began = time.monotonic()
        assert following.end() == 130
    assert time.monotonic() - began < 60
    assert "the head of the cluster no longer answers" in following.lines[-1]
    assert not [line for line in following.lines if "Traceback" in line]
