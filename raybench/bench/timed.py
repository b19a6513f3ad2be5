"""A sweep that notes when its trials begin and end, for the benches of the engine."""

from __future__ import annotations

import time
from pathlib import Path

from raybench.cluster.execute import execute
from raybench.progress import Progress
from raybench.space import Overrides, Space
from raybench.sweep import Sweep, Task


class Timed(Sweep):
    """`asked` by number, and `ends` in order, in seconds since the epoch."""

    def ask(self) -> Task | None:
        task = super().ask()
        if task is not None:
            self.asked = {**getattr(self, "asked", {}), task.number: task.asked}
        return task

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        super().finish(number, status, stop_reason)
        self.ends = [*getattr(self, "ends", []), time.time()]

    def first_start(self) -> float:
        """When the first worker took its trial: its imports are done by then."""
        rows = self.store.trials
        return min(asked + float(rows[n]["queue_s"]) for n, asked in self.asked.items())


def run(
    folder: Path, space: Space, overrides: Overrides, *, trials: int, workers: int, concurrent: int
) -> Timed:
    """Runs a whole sweep within the current Ray session."""
    sweep = Timed(
        folder, space, trials=trials, overrides=overrides, keep="none", early_stopping=False
    )
    with Progress(sweep) as progress:
        execute(sweep, progress, workers=workers, gpus=0.0, concurrent=concurrent)
    sweep.close()
    return sweep
