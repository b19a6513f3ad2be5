"""Stages on Ray actors: a stage is killed, transports agree, and commands as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench import artefact
from raybench.cluster.stages import Staged
from raybench.experiment import Experiment, Pipeline
from raybench.training.trainer import train
from trainers.pipeline import base

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 200.0
RESTART_S = 30.0  # 5 on an idle machine, of which the new process's imports take nearly all
SAME = ("loss", "validation_loss", "accuracy")

SPACE = '''
"""Stages, chunks, schedules, bits and transports of a small network."""
from dataclasses import replace

from raybench.experiment import Pipeline
from trainers.pipeline import base

objectives = {"accuracy": "max"}
enqueue = [
    {"stages": 2, "chunks": 4, "bits": 4, "schedule": "zero_bubble", "transport": "shm"},
    {"stages": 1, "chunks": 2, "bits": 32, "schedule": "gpipe", "transport": "gloo"},
    {"stages": 2, "chunks": 2, "bits": 8, "schedule": "1f1b", "transport": "gloo"},
]


def space(trial):
    return replace(
        base,
        model="resnet20",
        image_size=16,
        recipe=replace(base.recipe, batch=32, crop=2),
        pipeline=Pipeline(
            stages=trial.suggest_categorical("stages", [1, 2]),
            chunks=trial.suggest_categorical("chunks", [2, 4]),
            bits=trial.suggest_categorical("bits", [32, 8, 4]),
            schedule=trial.suggest_categorical("schedule", ["gpipe", "1f1b", "zero_bubble"]),
            transport=trial.suggest_categorical("transport", ["gloo", "shm"]),
        ),
    )
'''


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """Ray with two CPUs, in this process."""
    from raybench.cluster import stage_pool
    from raybench.cluster.session import session

    with session():
        yield stage_pool
        stage_pool.release()


def small(**pipeline: Any) -> Experiment:
    recipe = replace(base.recipe, epochs=3, batch=32, crop=2, precision="fp32", lr=0.1)
    said = {"stages": 2, "chunks": 4, "cuts": "4", **pipeline}
    return replace(
        base, model="resnet20", image_size=16, subset=0.3, recipe=recipe, pipeline=Pipeline(**said)
    )


@pytest.fixture(scope="module")
def undisturbed() -> list[dict[str, Any]]:
    """Epochs of the same experiment in one process, without Ray."""
    one = small(stages=1, cuts="")
    return [epoch.metrics for epoch in train(one, stages=Staged)]


@pytest.mark.parametrize("transport", ["gloo", "shm", "object_store"])
@pytest.mark.parametrize("schedule", ["gpipe", "zero_bubble"])
def test_every_transport_trains_as_one_process_does(ray_here, undisturbed, transport, schedule):
    epochs = [
        epoch.metrics
        for epoch in train(small(transport=transport, schedule=schedule), stages=Staged)
    ]
    for metrics, expected in zip(epochs, undisturbed, strict=True):
        assert {n: metrics[n] for n in SAME} == {n: expected[n] for n in SAME}
        assert metrics["restarts"] == 0
        assert 0 <= metrics["bubble"] < 1 <= metrics["imbalance"]
    # Activations of 32 images, 16 channels, 16x16 pixels, and their gradients; in fp32.
    assert epochs[0]["wire_bytes_per_step"] == 2 * 32 * 16 * 16 * 16 * 4
    assert epochs[-1]["test_loss"] == undisturbed[-1]["test_loss"]


@pytest.mark.parametrize(("rank", "transport"), [(0, "gloo"), (1, "shm")])
def test_a_killed_stage_is_made_anew_and_the_losses_go_on(ray_here, undisturbed, rank, transport):
    found, killed = [], []
    for epoch in train(small(transport=transport), stages=Staged):
        found.append(epoch.metrics)
        if epoch.number == 1:
            pids = ray_here.process_ids()
            # In the midst of the next epoch, which takes about a second.
            killer = threading.Timer(0.2, lambda pid: os.kill(pid, signal.SIGKILL), [pids[rank]])
            killer.start()
            killed.append(time.monotonic())
        elif epoch.number == 2:
            killed.append(time.monotonic())
    kept = [a == b for a, b in zip(pids, ray_here.process_ids(), strict=True)]
    assert kept == [rank == 1, rank == 0]
    for metrics, expected in zip(found, undisturbed, strict=True):
        assert {n: metrics[n] for n in SAME} == {n: expected[n] for n in SAME}
    assert [metrics["restarts"] for metrics in found] == [0, 1, 1]
    assert killed[1] - killed[0] - 2 * found[0]["train_s"] < RESTART_S


def test_a_cluster_that_is_too_small_is_said_at_once(ray_here):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"needs 7 stages of 1 CPU.* each, but the one node holds"):
        next(iter(train(small(stages=7, cuts=""), stages=Staged)))
    assert time.monotonic() - began < 30  # not at a deadline, which is minutes away


@pytest.mark.nightly
def test_a_diverged_stage_ends_the_trial_and_the_actors_serve_the_next(ray_here, undisturbed):
    from raybench.training.loop import Diverged

    wild = small(bits=8)
    wild = replace(wild, recipe=replace(wild.recipe, lr=1e30, warmup=0.0))
    with pytest.raises(Diverged):
        list(train(wild, stages=Staged))
    first = next(iter(train(small(), stages=Staged)))
    assert first.metrics["loss"] == undisturbed[0]["loss"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_a_sweep_over_stages_on_digits(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    swept = command(
        "raybench.tune",
        *("--space", str(tmp_path / "space.py"), "--trials", "3", "--epochs", "1"),
        *("--subset", "0.2", "--keep", "all", "--results", str(tmp_path)),
    )
    assert swept.returncode == 0, swept.stderr
    trials = pd.read_parquet(tmp_path / "space" / "trials").set_index("number").sort_index()
    assert trials["status"].tolist() == ["COMPLETE"] * 3
    assert trials["pipeline.stages"].tolist() == [2, 1, 2]
    assert (trials["wire_bytes_per_step"] > 0).tolist() == [True, False, True]
    assert trials["nonfinite_tensors"].sum() == 0
    for _, row in trials.iterrows():
        model = artefact.load(tmp_path / "space" / "models" / f"{row['trial']}.safetensors")
        assert sum(p.numel() for p in model.parameters()) == row["parameters"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pipeline.chunks", "3"), "use 1, 2, 4 or 8"),
        (("--pipeline.stages", "2", "--pipeline.cuts", "99"), "cut 99 is out of range"),
        (("--pipeline.stages", "99"), "use fewer"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, said, tmp_path: Path) -> None:
    small = ("--model", "resnet20", "--recipe.batch", "32", "--results", str(tmp_path))
    refused = command("raybench.train", "pipeline", *small, *arguments)
    assert refused.returncode == 2, refused.stderr
    assert said in refused.stderr
