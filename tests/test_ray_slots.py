"""Nodes that join, leave and are taken away under a running sweep; GPUs that are numbers only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.bench.cluster_parts import autoscaled
from raybench.bench.cluster_parts.own_cluster import OwnCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 240.0

SPACE = '''
"""Trials of {epochs} epochs of 0.3 s, or of no time once that is wanted."""
from raybench.experiment import Experiment, Recipe

objectives = {{"accuracy": "max"}}


def space(trial):
    seed = trial.suggest_int("seed", 0, 1000)
    return Experiment(
        family="told.trainer", model="resnet20", seed=seed, recipe=Recipe(epochs={epochs})
    )
'''
TRAINER = '''
"""Writes down where each trial begins and ends, and what it sees there."""
import json
import os
import time
from pathlib import Path

import ray

from raybench.training import checkpoint, measure
from raybench.training.loop import Epoch

columns = {}
TOLD = Path(__file__).with_name("told.jsonl")
HURRY = Path(__file__).with_name("hurry")


def train(experiment, *, resume=None, store=None):
    first = int(checkpoint.load(resume)["epoch"]) if resume else 0
    told = {
        "seed": experiment.seed,
        "first": first,
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": str(measure.pick_device()),
        "began": time.time(),
    }
    tell(told)
    epochs = experiment.recipe.epochs
    for number in range(first + 1, epochs + 1):
        time.sleep(0.0 if HURRY.exists() else 0.3)

        def save(path, number=number):
            checkpoint.write({"epoch": number}, path)

        if number == epochs:
            tell({**told, "ended": time.time()})
        yield Epoch(number, epochs, {"accuracy": 0.1, "startup_s": 0.0}, save)


def tell(line):
    with TOLD.open("a") as file:
        file.write(json.dumps(line) + "\\n")
'''


class Swept:
    """A sweep's command in a cluster, and what its trials tell."""

    def __init__(self, code: Path, cluster: OwnCluster, *arguments: str, epochs: int = 3) -> None:
        (code / "told").mkdir(exist_ok=True)
        (code / "told" / "__init__.py").touch()
        (code / "told" / "trainer.py").write_text(TRAINER)
        (code / "space.py").write_text(SPACE.format(epochs=epochs))
        self._code = code
        self._before = len(self._lines())
        self._folder = Path(tempfile.mkdtemp(dir=code))
        command = [sys.executable, "-m", "raybench.tune", "--space", str(code / "space.py")]
        command += ["--results", str(self._folder), "--stopping", "none"]
        command += ["--sampler", "random", "--keep", "none", *arguments]
        self._log = self._folder / "log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=cluster.environment, stdout=output, stderr=output
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def told(self) -> list[dict[str, Any]]:
        """What the trials of this sweep have told, in order."""
        return [json.loads(line) for line in self._lines()[self._before :]]

    def _lines(self) -> list[str]:
        file = self._code / "told" / "told.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    def hurry(self) -> None:
        """Lets the trials end."""
        (self._code / "told" / "hurry").touch()

    def trials(self) -> pd.DataFrame:
        return pd.read_parquet(self._folder / "space" / "trials")

    def until(self, happens: Callable[[], Any]) -> float:
        """Seconds until something happens while the sweep runs."""
        began = time.monotonic()
        while not happens():
            assert self.process.poll() is None, self.log
            assert time.monotonic() - began < DEADLINE_S, self.log
            time.sleep(0.05)
        return time.monotonic() - began

    def ended(self) -> int:
        return self.process.wait(DEADLINE_S)


@contextmanager
def swept(code: Path, cluster: OwnCluster, *arguments: str, epochs: int = 3) -> Iterator[Swept]:
    sweep = Swept(code, cluster, *arguments, epochs=epochs)
    try:
        yield sweep
    finally:
        if sweep.process.poll() is None:
            sweep.process.kill()
            sweep.process.wait()


def at_once(told: list[dict[str, Any]]) -> int:
    """The largest number of trials that ran at the same time."""
    spans = [(one["began"], one["ended"]) for one in told if "ended" in one]
    return max(sum(b <= began < e for b, e in spans) for began, _ in spans)


def test_a_node_joins_and_is_taken_away(tmp_path: Path) -> None:
    """From a cluster without CPUs: it waits, uses a node, and leaves it when it drains."""
    with (
        OwnCluster(cpus=0, path=tmp_path) as cluster,
        swept(tmp_path, cluster, "--trials", "2", "--wait", "200", epochs=400) as sweep,
    ):
        sweep.until(lambda: "waiting for room, at most 200 s" in sweep.log)
        assert "needs 1 CPU; the one node holds 0 CPUs" in sweep.log
        first = cluster.add(cpus=1)
        sweep.until(lambda: sweep.told())
        second = cluster.add(cpus=1)
        joined_s = sweep.until(lambda: len(sweep.told()) == 2)
        assert [one["node"] for one in sweep.told()] == [
            cluster.node_id(first),
            cluster.node_id(second),
        ]
        cluster.drain(first, deadline_s=100)
        sweep.until(lambda: "resumes from its last checkpoint: its node is about to" in sweep.log)
        third = cluster.add(cpus=1)
        sweep.until(lambda: len(sweep.told()) == 3)
        sweep.hurry()
        assert sweep.ended() == 0, sweep.log
        begun, _, moved = sweep.told()[:3]
        assert moved["seed"] == begun["seed"]
        assert moved["first"] > 0  # not from the beginning
        assert moved["node"] == cluster.node_id(third)
        trials = sweep.trials()
        assert set(trials["status"]) == {"COMPLETE"}
        assert not trials["retries"].fillna(0).any()  # nothing was lost
    # Ten seconds on an idle machine; importing torch takes most of them.
    assert joined_s < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.nightly
def test_gpus_are_shared_by_node_and_hidden_from_trials_without_one(tmp_path: Path) -> None:
    """One fake GPU on a node of two CPUs; the head has a CPU and no GPU."""
    with OwnCluster(cpus=1, path=tmp_path) as cluster:
        node = cluster.node_id(cluster.add(cpus=2, gpus=1))
        for gpus, slots, visible, nodes in (
            (("--gpus", "0.5"), 2, "0", {node}),
            (("--gpus", "0.6"), 1, "0", {node}),  # two do not fit into one GPU
            ((), 1, "0", {node}),  # a whole one each
        ):
            with swept(tmp_path, cluster, "--trials", "6", *gpus) as sweep:
                assert sweep.ended() == 0, sweep.log
                told = sweep.told()
                assert at_once(told) == slots
                assert {one["gpus"] for one in told} == {visible}
                assert {one["node"] for one in told} == nodes
                assert "1 of 2 nodes run no trial" in sweep.log
        with swept(tmp_path, cluster, "--trials", "8", "--gpus", "0") as sweep:
            assert sweep.ended() == 0, sweep.log
            told = sweep.told()
            assert at_once(told) == 3
            assert {one["gpus"] for one in told} == {""}
            assert {one["device"] for one in told} == {"cpu"}
            assert len({one["node"] for one in told}) == 2
        with swept(tmp_path, cluster, "--gpus", "2", "--wait", "1") as sweep:
            assert sweep.ended() == 2
            assert "it needs 1 CPU and 2 GPUs; 2 nodes hold 3 CPUs and 1 GPU" in sweep.log
        with swept(tmp_path, cluster, "--gpus", "1.5") as sweep:
            assert sweep.ended() == 2
            assert "--gpus is 1.5: a worker takes a part of one GPU" in sweep.log


@pytest.mark.nightly
@pytest.mark.parametrize("autoscaler", ["v1", "v2"])
def test_however_a_sweep_ends_it_leaves_nothing_asked_for(tmp_path: Path, autoscaler: Any) -> None:
    types = {"small": {"CPU": 1, "max_workers": 2}}
    with OwnCluster(cpus=0, autoscaler=autoscaler, types=types, path=tmp_path) as cluster:
        with swept(tmp_path, cluster, "--workers", "4") as sweep:
            assert sweep.ended() == 2, sweep.log
            assert "it needs 4 workers of 1 CPU each" in sweep.log
            assert "Traceback" not in sweep.log
        for sent, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            with swept(tmp_path, cluster, "--trials", "40", epochs=400) as sweep:
                # v2 starts nothing for 40 trials: the right number has to be found.
                sweep.until(lambda: len({one["node"] for one in sweep.told()}) == 2)
                assert cluster.nodes() == 3
                sweep.process.send_signal(sent)
                assert sweep.ended() == code, sweep.log
            end = time.monotonic() + autoscaled.SHRINKS_S
            while cluster.nodes() > 1:
                assert time.monotonic() < end, "the demand was not withdrawn"
                time.sleep(0.2)


@pytest.mark.nightly
def test_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    with (
        OwnCluster(cpus=0, path=tmp_path) as cluster,
        swept(tmp_path, cluster, "--wait", "500") as sweep,
    ):
        sweep.until(lambda: "waiting for room" in sweep.log)
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.process.wait(60) == 130, sweep.log
        assert "the same command resumes" in sweep.log


@pytest.mark.nightly
def test_a_cluster_without_cpus_grows_and_shrinks() -> None:
    assert autoscaled.measure()["autoscaled"] == 1
