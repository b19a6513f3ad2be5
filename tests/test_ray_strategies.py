"""Strategies as a user runs them, on a Ray of their own: a worker killed, and a sweep."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from raybench import data
from raybench.reports.summary import family_table
from raybench.results.read import read
from raybench.train import parse
from raybench.training.loop import fit

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 240.0
EPOCHS, KILLED_AFTER = 6, 2
SMALL = ["strategies", "--model", "vit64x2", "--data", "digits", "--image-size", "32"]
SMALL += ["--recipe.crop", "2", "--recipe.precision", "fp32", "--subset", "0.4"]
SMALL += ["--recipe.epochs", str(EPOCHS)]


def worker_processes(driver: int) -> list[int]:
    """The training workers among the descendants of a command."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    parents, words = {}, {}
    for line in listed.stdout.splitlines()[1:]:
        pid, parent, args = line.split(None, 2)
        parents[int(pid)], words[int(pid)] = int(parent), args
    found = []
    for pid, args in words.items():
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and "RayTrainWorker" in args:
            found.append(pid)
    return found


def test_a_killed_worker_costs_one_epoch_at_most(tmp_path: Path) -> None:
    options = ["--strategy", "zero2", "--workers", "1:2", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "raybench.train", *SMALL, *options]
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    end, killed = time.monotonic() + DEADLINE_S, 0
    try:
        while driver.poll() is None and time.monotonic() < end:
            if not killed and f"epoch {KILLED_AFTER}/" in (tmp_path / "said").read_text():
                workers = worker_processes(driver.pid)
                assert len(workers) == 2
                os.kill(workers[-1], signal.SIGKILL)
                killed = workers[-1]
            time.sleep(0.02)
        text = (tmp_path / "said").read_text()
        assert driver.poll() == 0, text
    finally:
        driver.kill()
    assert killed
    numbers = [int(n) for n in re.findall(r"^epoch (\d+)/", text, re.MULTILINE)]
    assert numbers == [*range(1, EPOCHS + 1)]

    epochs = read(tmp_path / "strategies-runs").epochs.set_index("epoch")
    assert (epochs["workers_used"] == 2).all()
    experiment = parse([*SMALL, "--workers", "1"]).experiment
    uninterrupted = fit(experiment, data.load(experiment))
    for epoch in uninterrupted:
        assert epochs["loss"][epoch.number] == pytest.approx(epoch.metrics["loss"], rel=1e-3)


SPACE = '''
"""Two strategies, and one worker."""
from dataclasses import replace
from raybench.experiment import Parallel
from trainers.strategies import base

objectives = {"samples_per_s": "max", "memory_bytes": "min"}
enqueue = [{"strategy": "ddp"}, {"strategy": "zero3"}]


def space(trial):
    strategy = trial.suggest_categorical("strategy", ["ddp", "zero3"])
    return replace(
        base,
        model="vit64x2",
        data="digits",
        image_size=32,
        subset=0.2,
        recipe=replace(base.recipe, epochs=1, crop=2, precision="fp32"),
        parallel=Parallel(workers=2, strategy=strategy),
    )
'''


def test_a_sweep_of_two_strategies_then_the_table(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    swept = subprocess.run(
        [
            *(sys.executable, "-m", "raybench.tune", "--space", str(tmp_path / "space.py")),
            *("--trials", "2", "--stopping", "none", "--results", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert swept.returncode == 0, swept.stderr
    results = read(tmp_path / "space")
    rows = results.trials.set_index("parallel.strategy")
    assert rows["status"].tolist() == ["COMPLETE"] * 2
    for kind in ("parameters", "gradients", "optimizer", "activations"):
        counted, wanted = rows[f"{kind}_bytes"], rows[f"theory_{kind}_bytes"]
        assert (counted.astype(float) / wanted.astype(float) - 1).abs().max() < 0.01, kind
    assert rows["optimizer_bytes"]["zero3"] < 0.51 * rows["optimizer_bytes"]["ddp"]
    assert rows["loss"]["zero3"] == pytest.approx(rows["loss"]["ddp"], rel=1e-4)
    table = family_table(results, threshold=0.5)
    assert table is not None
    assert table["plugin"].tolist() == ["ddp", "zero3"]
    assert table["reference: samples/s"].tolist()[0] == 43.7168
    assert pd.isna(table["reference: samples/s"][1])
