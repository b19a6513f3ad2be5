"""Kills a stage of a pipeline during an epoch, and measures how soon training resumes."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from statistics import median

from raybench.cluster import stage_pool
from raybench.cluster.session import session
from raybench.cluster.stages import Staged
from raybench.experiment import Experiment, Pipeline
from raybench.training.trainer import train
from trainers.pipeline import base

ROUNDS = 5
UNTIL_KILLED_S = 0.2  # after the end of the previous epoch; an epoch takes about a second

claims = {"restart_s": "at most 5", "same_losses": "1: the losses are those without a kill"}


def measure() -> dict[str, float]:
    """Seconds from SIGKILL to the end of the epoch, minus those of an epoch; each stage in turn.

    The killed epoch is run again. The rest is the time to notice the death, start a process with
    its imports, read the stage's checkpoint and connect to the other stage.
    """
    waits, same = [], []
    with session():
        try:
            undisturbed = [epoch.metrics["loss"] for epoch in train(subject(), stages=Staged)]
            for number in range(ROUNDS):
                wait, losses = _killed(number % 2)
                waits.append(wait)
                same.append(losses == undisturbed)
        finally:
            stage_pool.release()
    return {
        "restart_s": median(waits),
        "restart_s_min": min(waits),
        "restart_s_max": max(waits),
        "same_losses": float(all(same)),
        "rounds": ROUNDS,
    }


def subject() -> Experiment:
    """ResNet-20 in two stages on digits of 16 x 16 pixels."""
    recipe = replace(base.recipe, epochs=3, batch=32, crop=2, precision="fp32", lr=0.1)
    pipeline = Pipeline(stages=2, chunks=4, cuts="4", transport="shm")
    return replace(base, model="resnet20", image_size=16, recipe=recipe, pipeline=pipeline)


def _killed(rank: int) -> tuple[float, list[float]]:
    """Seconds lost when stage `rank` dies in the second epoch, and the losses of all epochs."""
    losses, killed_at, wait, whole = [], [], 0.0, 0.0
    for epoch in train(subject(), stages=Staged):
        losses.append(epoch.metrics["loss"])
        if epoch.number == 1:
            whole = epoch.metrics["train_s"]
            pid = stage_pool.process_ids()[rank]

            def kill(pid: int = pid) -> None:
                os.kill(pid, signal.SIGKILL)
                killed_at.append(time.monotonic())

            threading.Timer(UNTIL_KILLED_S, kill).start()
        elif epoch.number == 2:
            wait = time.monotonic() - killed_at[0] - whole
            assert epoch.metrics["restarts"] == 1
    return wait, losses
