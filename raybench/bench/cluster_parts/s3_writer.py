"""A sweep with its results at an address, in a process that is killed.

It does not use Ray: its trials compute nothing, and take a few milliseconds each.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

from raybench.bench import trivial_space
from raybench.results import log
from raybench.results.remote.place import opened
from raybench.search import space as spaces
from raybench.search.overrides import Overrides
from raybench.search.sweep import Sweep
from raybench.search.task import Task

NAME = "killed"
EPOCHS, AT_ONCE = 4, 3
EPOCH_S = 0.02
STALE_S = 4.0  # instead of a minute, because each resume waits for so long


def metrics(task: Task, epoch: int) -> dict[str, Any]:
    """Metrics that depend only on the experiment and the epoch."""
    learned = epoch / (epoch + 1)
    return {"accuracy": learned * int(task.experiment.key(), 16) / 16**16, "loss": 1 - learned}


def main(results: str, trials: int, seed: int, folder: str) -> None:
    """Starts or resumes the sweep, on a machine whose cache is `folder`, and runs it to its end.

    Once it has opened the sweep, the file `begun` there has the number of trials found.
    """
    os.environ["RAYBENCH_CACHE"] = folder
    space = spaces.load(Path(str(trivial_space.__file__)), Overrides(epochs=EPOCHS))
    # A different machine each time, so that the killed writer's lease must become stale.
    with opened(results, NAME, machine=uuid.uuid4().hex, stale_s=STALE_S) as place:
        sweep = Sweep(
            place.folder,
            space,
            trials=trials,
            overrides=Overrides(epochs=EPOCHS),
            sampler="random",
            early_stopping=False,
        )
        sweep.store.check, sweep.store.flush = place.check, place.flush
        log.replace(Path(folder, "begun"), str(sweep.tally.trials).encode())
        _drive(sweep, random.Random(seed))
        sweep.close()


def _drive(sweep: Sweep, draw: random.Random) -> None:
    running: list[tuple[Task, int]] = []
    while True:
        while len(running) < AT_ONCE and (task := sweep.ask()) is not None:
            running.append((task, 1))
        if not running:
            return
        task, epoch = running.pop(draw.randrange(len(running)))
        time.sleep(EPOCH_S)
        sweep.report(task.number, epoch, metrics(task, epoch))
        task.checkpoint.write_bytes(b"state" * 200)
        if epoch == EPOCHS:
            task.model.write_bytes(b"weights" * 200)
            sweep.finish(task.number, "COMPLETE")
        else:
            running.append((task, epoch + 1))
        sweep.store.snapshot_if_due()
